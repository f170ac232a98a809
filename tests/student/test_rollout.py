"""A student's answers: what is sampled, what a stop leaves, and which student wrote it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_bases import hybrid
from transformers import AutoTokenizer, PreTrainedModel

from arwkv_store.errors import ConfigurationDiffers, UsageError
from arwkv_store.places.answer_file import origin_of, written_by
from arwkv_student.model.loading import checkpoint_hash, load_any_student
from arwkv_student.rollout.rollout import rollout
from arwkv_student.rollout.sampling import Sampler, answers
from arwkv_student.rollout.settings import RolloutSettings

PROMPTS = ["import os", "def f(x):\n    return", "class A", "for", "x = 1 +", ""]


@pytest.fixture(scope="module")
def student(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hybrid with one layer of each kind, so that its cache holds states, keys and values."""
    return hybrid(tiny_teacher, tmp_path_factory.mktemp("student"), mixed=1)


@pytest.fixture
def asked(student: Path, tmp_path: Path) -> RolloutSettings:
    data = tmp_path / "prompts.jsonl"
    lines = [{"prompt": text, "answer": number} for number, text in enumerate(PROMPTS)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return RolloutSettings(
        model=str(student), data=data, out=tmp_path / "rollouts.jsonl", max_new_tokens=12, dtype="fp32", batch_size=4
    )


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def sampler(**more: Any) -> Sampler:
    common: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "seed": 0, "max_new_tokens": 12, "vocab_size": 500}
    return Sampler(**common | {"end_tokens": frozenset({0})} | more)


def alone(model: PreTrainedModel, ids: list[int], tokens: int) -> list[int]:
    """The likeliest tokens, each from reading everything again."""
    said: list[int] = []
    for _ in range(tokens):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*ids, *said]]), use_cache=False).logits[0, -1, :500]
        said.append(int(logits.argmax()))
        if said[-1] == 0:
            break
    return said


def test_batch_says_what_each_prompt_alone_says(student: Path, tiny_teacher: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(student)
    ids = [tokenizer(text)["input_ids"] for text in PROMPTS[:5]]
    for folder in (student, tiny_teacher):
        model = load_any_student(folder).eval()
        often = frozenset({0, alone(model, ids[1], 6)[-1]})  # one that ends early while others go on
        said = answers(model, ids, range(5), sampler(end_tokens=often))
        for prompt, own in zip(ids, said, strict=True):
            whole = alone(model, prompt, 12)
            ends = [at for at, token in enumerate(whole) if token in often]
            assert own == (whole[: ends[0] + 1] if ends else whole)
        assert len({len(own) for own in said}) > 1


def test_draws_follow_the_distribution_and_top_p_cuts_its_tail() -> None:
    logits_V = torch.tensor([0.1, 2.0, -1.0, 1.0, 50.0])
    p_V = (logits_V[:4] / 0.7).softmax(-1)
    uniform_B = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:-1]
    chosen_B = sampler(temperature=0.7, vocab_size=4).choose(logits_V.expand(10_000, 5), uniform_B)
    torch.testing.assert_close(chosen_B.bincount(minlength=4) / 10_000, p_V, rtol=0, atol=2e-4)
    cut_B = sampler(temperature=0.7, vocab_size=4, top_p=float(p_V[1]) + 0.01).choose(
        logits_V.expand(10_000, 5), uniform_B
    )
    assert set(cut_B.tolist()) == {1, 3}


def test_answer_does_not_depend_on_its_batch_and_differs_by_sample_and_seed(asked: RolloutSettings) -> None:
    settings = replace(asked, samples=3)
    whole = rollout(settings)
    assert whole["answers"] == 18
    again = replace(settings, out=asked.out.with_name("again.jsonl"), batch_size=7)
    rollout(again)
    assert records(again.out) == records(asked.out)
    assert [record["sample"] for record in records(asked.out)] == [0, 1, 2] * 6
    assert len({record["completion"] for record in records(asked.out)}) > 12
    other = replace(settings, out=asked.out.with_name("other.jsonl"), seed=1)
    rollout(other)
    assert records(other.out) != records(asked.out)


def test_record_carries_its_prompt_s_fields_and_reads_as_a_corpus(asked: RolloutSettings, student: Path) -> None:
    rollout(asked)
    tokenizer = AutoTokenizer.from_pretrained(student)
    for number, record in enumerate(records(asked.out)):
        assert (record["prompt"], record["answer"]) == (PROMPTS[number], number)
        assert record["ended"] == record["completion"].endswith(tokenizer.eos_token)
        assert record["completion"]


def test_killed_rollout_goes_on_where_it_was(asked: RolloutSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout(asked)
    whole = asked.out.read_bytes()
    lines = whole.splitlines(keepends=True)
    asked.out.unlink()
    part = asked.out.with_name("rollouts.jsonl.part")
    part.write_bytes(b"".join(lines[:4]) + lines[4][:20])
    rollout(asked)
    assert asked.out.read_bytes() == whole
    assert not part.exists()
    monkeypatch.setattr("arwkv_student.rollout.rollout.load_any_student", None)
    assert rollout(asked)["answers"] == len(PROMPTS)


def test_file_says_which_student_wrote_it_and_refuses_another_way(asked: RolloutSettings, student: Path) -> None:
    assert rollout(asked)["written_by"] == checkpoint_hash(student) == written_by(asked.out)
    with pytest.raises(ConfigurationDiffers, match=r"temperature: 1.0 there, 0.5 asked"):
        rollout(replace(asked, temperature=0.5))
    asked.data.write_text('{"prompt": "another"}\n')
    with pytest.raises(ConfigurationDiffers, match="prompts: "):
        rollout(asked)
    origin_of(asked.out).unlink()
    with pytest.raises(UsageError, match="nothing says how it was made"):
        rollout(asked)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"}', r"prompts.jsonl:1: no prompt or messages \(it has: text\)"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "has no chat template"),
        ("", "it holds no prompt"),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused(line: str, message: str, asked: RolloutSettings) -> None:
    asked.data.write_text(line + "\n")
    with pytest.raises(UsageError, match=message):
        rollout(asked)
    assert not asked.out.exists()


def test_conversation_is_answered_behind_its_last_question(
    asked: RolloutSettings, student: Path, tmp_path: Path
) -> None:
    chatting = tmp_path / "chatting"
    chatting.mkdir()
    for file in student.iterdir():
        (chatting / file.name).symlink_to(file)
    (chatting / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    turns = [{"role": "user", "content": "import"}, {"role": "assistant", "content": "old"}]
    asked.data.write_text(json.dumps({"messages": turns, "id": 7}) + "\n")
    rollout(replace(asked, model=str(chatting)))
    (record,) = records(asked.out)
    assert record["messages"][0] == turns[0]
    assert record["messages"][1]["role"] == "assistant"
    assert record["messages"][1]["content"] != "old"
    assert record["id"] == 7
