"""Which parameters a stage trains."""

from pathlib import Path

import pytest
import torch

from arwkv_store.errors import UsageError
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.training.parameters import choose_trained


def test_spared_recall_is_what_chooses_the_tokens_to_read(tiny_teacher: Path) -> None:
    base = open_base(str(tiny_teacher))
    hybrid = convert(base, student_config(base, "arwkv", {"head_dim": 16}, [0])).model
    choose_trained(hybrid, "spare-recall")
    frozen = {name for name, parameter in hybrid.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        "model.layers.0.time_mix.receptance.weight",
        "model.layers.0.time_mix.key.weight",
        *(f"model.layers.1.self_attn.{part}_proj.{kind}" for part in "qk" for kind in ("weight", "bias")),
    }


@pytest.mark.parametrize(
    ("trained", "trains"),
    [("all", ".mlp.up"), ("frozen-mlp", ".time_mix.key"), ("time-mix", ".time_mix.key"), ("preset", ".time_mix.key")],
)
def test_other_choices_train_these(trained: str, trains: str, tiny_teacher: Path) -> None:
    base = open_base(str(tiny_teacher))
    model = convert(base, student_config(base, "arwkv", {"head_dim": 16})).model
    choose_trained(model, trained)
    training = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any(trains in name for name in training)
    assert any(".mlp." in name for name in training) == (trained == "all")
    assert ("lm_head.weight" in training) == (trained != "time-mix")


def test_part_that_the_model_lacks_is_refused() -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(UsageError, match="--trained spare-recall: no parameter of the student is time_mix"):
        choose_trained(model, "spare-recall")  # type: ignore[arg-type] # any module with names
