"""The long suite: what its questions hold, how they are read, and what its figures mean."""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_bases import hybrid
from transformers import AutoTokenizer

from arwkv_store.errors import UsageError
from arwkv_student.long import evaluate as module
from arwkv_student.long.evaluate import evaluate_long
from arwkv_student.long.reading import likeliest, negative_log_likelihoods
from arwkv_student.long.settings import TASKS, Task
from arwkv_student.long.tasks import question
from arwkv_student.model.loading import load_any_student
from arwkv_student.settings import EvalSettings


@pytest.fixture(scope="module")
def student(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hybrid, whose cache holds states, keys and values."""
    return hybrid(tiny_teacher, tmp_path_factory.mktemp("student"), mixed=0)


@pytest.mark.parametrize("task", TASKS)
def test_question_has_the_asked_length_and_holds_its_answer(task: Task, tiny_teacher: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    for number in range(4):
        asked = question(task, 900, number, 0, tokenizer)
        answer = [token for item in asked.answer for token in item]
        assert len(asked.ids) + len(answer) == 900
        text = tokenizer.decode(asked.ids)
        for item in asked.answer:
            assert tokenizer.decode(item) in text
    assert question(task, 900, 3, 0, tokenizer) == asked
    assert question(task, 900, 3, 1, tokenizer) != asked


def test_answers_are_right(tiny_teacher: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)

    def text_and_answer(task: Task) -> tuple[str, list[str]]:
        asked = question(task, 900, 1, 0, tokenizer)
        return tokenizer.decode(asked.ids), [tokenizer.decode(item).strip() for item in asked.answer]

    text, (number,) = text_and_answer("multi-key")
    name = text.rsplit("The magic number of ", 1)[1].removesuffix(" is")
    assert text.count(f"The magic number of {name} is {number}.") == 1
    assert text.count("The magic number of") == 9
    text, names = text_and_answer("variables")
    value = text.rsplit("whose value is ", 1)[1].split()[0]
    assert f"Set {names[0]} to {value}." in text
    for one, other in itertools.pairwise(names):
        assert f"Set {other} to {one}." in text
    text, words = text_and_answer("aggregation")
    counts = [text.split().count(word) for word in words]
    assert counts[0] > counts[1] > counts[2] > 1


def test_length_that_holds_no_question_is_refused(tiny_teacher: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    with pytest.raises(UsageError, match=r"--lengths: \d+ tokens do not hold the facts of task multi-key"):
        question("multi-key", 80, 0, 0, tokenizer)
    with pytest.raises(UsageError, match="do not hold a list of task aggregation"):
        question("aggregation", 60, 0, 0, tokenizer)


@pytest.mark.parametrize("chunk", [7, 64, 1000])
def test_chunks_read_what_one_pass_reads(chunk: int, student: Path, tiny_teacher: Path) -> None:
    ids_BT = torch.randint(1, 500, (2, 101), generator=torch.Generator().manual_seed(0))
    for folder in (student, tiny_teacher):
        model = load_any_student(folder).eval()
        with torch.no_grad():
            log_q = model(input_ids=ids_BT, use_cache=False).logits[..., :500].log_softmax(-1)
        nll_BT = torch.cat([*negative_log_likelihoods(model, ids_BT, 500, chunk)], dim=1)
        expected = -log_q[:, :-1].gather(2, ids_BT[:, 1:, None]).squeeze(2)
        torch.testing.assert_close(nll_BT, expected, rtol=1e-4, atol=1e-4)
        said_BT = likeliest(model, ids_BT, 10, 500, chunk)
        assert torch.equal(said_BT, log_q[:, -11:-1].argmax(-1))


@pytest.fixture
def settings(student: Path) -> EvalSettings:
    return EvalSettings(model=str(student), suite="long", lengths=(600, 700), samples=3, dtype="fp32", batch_size=2)


def knowing(right: Any) -> Any:
    """A stand-in for reading a text: of each question, says true tokens where `right` says so, else none."""
    numbers: Iterator[int] = iter(range(10**6))

    def said(model: Any, ids_BT: torch.Tensor, last: int, vocab_size: int, chunk: int) -> torch.Tensor:
        rows = [row if right(next(numbers), at) else -1 for line in ids_BT[:, -last:] for at, row in enumerate(line)]
        return torch.tensor(rows).view(len(ids_BT), last)

    return said


def test_exact_means_the_whole_answer_and_items_each_of_its_parts(
    settings: EvalSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "likeliest", knowing(lambda number, at: True))
    assert evaluate_long(settings)["long"]["variables"]["700"] == {"exact": 1.0, "items": 1.0}
    monkeypatch.setattr(module, "likeliest", knowing(lambda number, at: at > 0))  # the first token is wrong
    found = evaluate_long(settings)["long"]["variables"]["600"]
    assert found["exact"] == 0.0
    assert found["items"] == pytest.approx(0.75)


def test_perplexity_is_that_of_the_positions_named(settings: EvalSettings, student: Path, tmp_path: Path) -> None:
    text = tmp_path / "texts.jsonl"
    lines = ["import os\n" * 100, "short", "def f(x):\n    return x\n" * 60]
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    asked = replace(settings, lengths=(300,), long_tasks=("single",), long_text=text, samples=2, chunk_tokens=50)
    found = evaluate_long(asked)["perplexity_by_position"]
    assert list(found) == ["0-255", "256-299"]
    tokenizer, model = AutoTokenizer.from_pretrained(student), load_any_student(student).eval()
    own = [tokenizer(line)["input_ids"] for line in lines]
    end = [tokenizer.eos_token_id]
    ids = torch.tensor([own[0][:300], (own[1] + end + own[2])[:300]])
    with torch.no_grad():
        log_q = model(input_ids=ids, use_cache=False).logits[..., :500].log_softmax(-1)
    nll = -log_q[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
    assert found["0-255"] == pytest.approx(math.exp(nll[:, :255].mean()), rel=1e-3)
    assert found["256-299"] == pytest.approx(math.exp(nll[:, 255:].mean()), rel=1e-3)


def test_what_cannot_be_asked_is_refused(settings: EvalSettings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--model is missing"):
        evaluate_long(replace(settings, model=None))
    with pytest.raises(UsageError, match="--chunk-tokens 0"):
        evaluate_long(replace(settings, chunk_tokens=0))
    short = tmp_path / "short.jsonl"
    short.write_text('{"text": "import os"}\n')
    with pytest.raises(UsageError, match="it holds fewer than 700 tokens"):
        evaluate_long(replace(settings, long_tasks=(), long_text=short))
