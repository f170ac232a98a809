import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_model import student, tokens_BT
from transformers import AutoTokenizer

from arwkv_store.errors import CorruptShard, UsageError
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.bases.tokenizer import copy_tokenizer
from arwkv_student.generate import encode, generate
from arwkv_student.model.cache import ArwkvCache
from arwkv_student.model.loading import load_student
from arwkv_student.settings import GenerateSettings

KINDS = [("arwkv", ()), ("rad-rwkv7", ()), ("arwkv", (1,)), ("rad-rwkv7", (0, 2))]


@pytest.fixture(scope="module")
def folder(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student whose padding rows of the head (500 to 543) are louder than all tokens'."""
    folder = tmp_path_factory.mktemp("generate") / "student"
    torch.manual_seed(0)
    base = open_base(str(tiny_teacher))
    model = convert(base, student_config(base, "arwkv", {"head_dim": 16})).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.lm_head.weight[500:] *= 50
    model.save_pretrained(folder)
    copy_tokenizer(tiny_teacher, folder)
    return folder


@pytest.mark.parametrize(("preset", "attention_layers"), KINDS)
@pytest.mark.parametrize("chunk", [None, 5])
def test_ragged_batch_generates_as_its_rows_do_alone(
    preset: str, attention_layers: tuple[int, ...], chunk: int | None
) -> None:
    model = student(preset, attention_layers)
    rows = [tokens_BT(3)[n, : 20 - 6 * n] for n in range(3)]
    padded = torch.stack([torch.cat([torch.full((20 - len(row),), 7), row]) for row in rows])
    mask = torch.stack([torch.cat([torch.zeros(20 - len(row)), torch.ones(len(row))]) for row in rows]).long()
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    together = model.generate(padded, attention_mask=mask, prefill_chunk_size=chunk, **options)
    for row, said in zip(rows, together, strict=True):
        alone = model.generate(row[None], attention_mask=torch.ones(1, len(row), dtype=torch.long), **options)
        assert torch.equal(alone[0, len(row) :], said[20:])


@pytest.mark.parametrize(("preset", "attention_layers"), KINDS)
def test_generation_goes_on_from_a_prefilled_state(preset: str, attention_layers: tuple[int, ...]) -> None:
    model = student(preset, attention_layers)
    prompt, mask = tokens_BT(2, 23), torch.ones(2, 23, dtype=torch.long)
    mask[0, :9] = 0
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    expected = model.generate(prompt, **options)
    cache = model.prefill(prompt[:, :13], mask[:, :13], chunk_tokens=4)
    restored = ArwkvCache.from_state_dict(model.config, cache.state_dict())
    model.prefill(prompt[:, 13:-1], mask[:, :-1], restored, chunk_tokens=3)
    assert torch.equal(model.generate(prompt, past_key_values=restored, **options), expected)


def test_prefill_holds_one_chunk_at_a_time() -> None:
    model = student()
    seen: list[int] = []
    model.model.layers[0].register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0].shape[1]))
    model.prefill(tokens_BT(1, 50), chunk_tokens=16)
    assert seen == [16, 16, 16, 2]


def test_tokens_reach_the_terminal_while_others_are_still_to_come(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[int] = []
    original = torch.Tensor.argmax

    def argmax(self: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        shown.append(len(capsys.readouterr().out))
        return original(self, *arguments, **options)

    monkeypatch.setattr(torch, "argmax", argmax)
    result = generate(GenerateSettings(model=str(folder), prompt="import os\n", max_new_tokens=96))
    assert result["tokens"] == 96
    assert sum(count > 0 for count in shown) > 1


def test_no_token_comes_from_a_padding_row(folder: Path, tmp_path: Path) -> None:
    model, prompt = load_student(folder).eval(), torch.tensor([[5, 6, 7]])
    free = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False)
    assert (free[0, 3:] >= 500).any()
    state = tmp_path / "state.safetensors"
    generate(GenerateSettings(model=str(folder), prompt="import", max_new_tokens=8, json=True, state=state))
    assert (load_file(state)["tokens"] < 500).all()


def test_a_kept_state_goes_on_where_it_ended(folder: Path, tmp_path: Path) -> None:
    asked = GenerateSettings(model=str(folder), prompt="import os\n", max_new_tokens=6, json=True)
    whole = generate(replace(asked, max_new_tokens=12))["text"]
    kept = replace(asked, state=tmp_path / "state.safetensors")
    first = generate(kept)["text"]
    assert first + generate(replace(kept, prompt=""))["text"] == whole
    tensors = load_file(tmp_path / "state.safetensors")
    assert len(tensors["tokens"][0]) == int(tensors["0.seen_tokens"]) + 1


def test_a_chats_second_question_follows_the_reply_before_without_another_beginning(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "chat")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.chat_template = (
        "<system>be brief<|im_end|>\n{% for m in messages %}<{{ m.role }}>{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path / "chat")
    question, reply = {"role": "user", "content": "import"}, {"role": "assistant", "content": "os"}
    asked = GenerateSettings(model=str(tmp_path / "chat"), prompt="import", chat=True, json=True, max_new_tokens=2)
    first_1T = encode(tokenizer, asked, torch.empty(1, 0, dtype=torch.long))
    whole = tokenizer.apply_chat_template([question, reply, question], add_generation_prompt=True, return_dict=False)
    for said in ("os", "os<|im_end|>"):
        before_1T = torch.cat([first_1T, torch.tensor([tokenizer(said)["input_ids"]])], dim=1)
        assert [*before_1T[0].tolist(), *encode(tokenizer, asked, before_1T)[0].tolist()] == whole
    kept = replace(asked, state=tmp_path / "state.safetensors")
    generate(kept)
    generate(kept)
    text = tokenizer.decode(load_file(tmp_path / "state.safetensors")["tokens"][0])
    assert (text.count("be brief"), text.count("<user>import")) == (1, 2)
    tokenizer.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(UsageError, match="leaves out earlier replies"):
        encode(tokenizer, asked, first_1T)


def test_states_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    asked = GenerateSettings(model=str(folder), prompt="x", max_new_tokens=2, json=True, state=file)
    generate(asked)
    save_file(load_file(file), file, {"checkpoint": "another"})
    with pytest.raises(UsageError, match="another student wrote it"):
        generate(asked)
    file.write_bytes(b"no tensors")
    with pytest.raises(CorruptShard, match="remove it"):
        generate(asked)
    with pytest.raises(UsageError, match="can be written"):
        generate(replace(asked, state=tmp_path / "nowhere" / "state"))


def test_recipe_shows_code_that_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = (Path(__file__).parents[2] / "docs" / "recipe.md").read_text()
    code = document.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, torch.Tensor] = {}
    exec(code.replace("runs/student", str(folder)), names)
    more = names["more_ids"]
    assert torch.equal(names["said"][:, : more.shape[1]], more)
    model = load_student(folder).eval()
    read = model.generate(more, attention_mask=torch.ones_like(more), max_new_tokens=64)
    assert torch.equal(names["said"], read)
