"""After tuning on conversations a student stops where its template ends a turn, whatever its base ends a text with."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import untrained_student
from arwkv_student.bases.tokenizer import copy_tokenizer
from arwkv_student.model.loading import load_student
from arwkv_student.run.end_of_turn import add_end_token, end_of_turn
from arwkv_student.settings import TrainSettings
from arwkv_student.training.pipeline import train

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
)


@pytest.fixture(scope="module")
def student(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of a base whose end of text is not the template's end of turn."""
    folder = tmp_path_factory.mktemp("student")
    base = open_base(str(tiny_teacher))
    untrained_student(base, TrainSettings(head_dim=32), 0).save_pretrained(folder)
    copy_tokenizer(base.folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def test_a_tuned_student_ends_with_its_templates_turn(student: Path, tmp_path: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(student)
    own, turn = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")
    data = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": "import"}, {"role": "assistant", "content": "os"}]
    data.write_text(json.dumps({"messages": turns}) + "\n")
    out = tmp_path / "run"
    train(
        TrainSettings(stage="sft", start_from=str(student), data=str(data), out=out, steps=1, batch_size=1, workers=0)
    )
    for folder in (out, out / "sft"):
        assert json.loads((folder / "config.json").read_text())["eos_token_id"] == [own, turn]
        assert GenerationConfig.from_pretrained(folder).eos_token_id == [own, turn]
    model = load_student(out).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    model.lm_head.weight.data[turn] = model.model(torch.tensor([[5]])).last_hidden_state[0, -1].detach()
    said = model.generate(torch.tensor([[5]]), attention_mask=torch.ones(1, 1, dtype=torch.long), max_new_tokens=4)
    assert said[0].tolist() == [5, turn]


def test_a_token_that_ends_texts_already_is_named_once(student: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": [3, 7]}')
    for token in (7, 9, 9):
        add_end_token(tmp_path, token)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / name).read_text()) == {"eos_token_id": [3, 7, 9]}


@pytest.mark.parametrize(("mark", "ends"), [("<|im_end|>\n", True), ("\n### ", False), ("", False)])
def test_only_a_token_made_for_it_ends_a_turn(student: Path, mark: str, ends: bool) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(student)
    tokenizer.chat_template = TEMPLATE.replace("<|im_end|>\n", mark)
    assert (end_of_turn(tokenizer) is not None) == ends
    tokenizer.chat_template = None
    assert end_of_turn(tokenizer) is None
