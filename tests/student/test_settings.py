"""Numbers that no run can have are refused before anything is read."""

from dataclasses import replace

import pytest

from arwkv_store.errors import UsageError
from arwkv_student import cli
from arwkv_student.settings import TrainSettings

WRONG = [
    ("steps", 0),
    ("tokens", -5),
    ("align_tokens", 0),
    ("distill_tokens", 0),
    ("epochs", 0.0),
    ("batch_size", 0),
    ("gradient_accumulation", 0),
    ("context", (2048, 0)),
    ("align_context", -1),
    ("max_length", 0),
    ("align_stop_error", 0.0),
    ("align_stop_plateau", 0),
    ("align_lr", -1e-3),
    ("distill_lr", float("nan")),
    ("sft_lr", float("inf")),
    ("dpo_lr", 0.0),
    ("dpo_beta", -0.1),
    ("rest_lr", -1e-5),
    ("lr_floor", 5.0),
    ("warmup", 1.5),
    ("weight_decay", -0.1),
    ("max_grad_norm", -1.0),
    ("temperature", 0.0),
    ("ce_weight", 1.5),
    ("log_every", 0),
    ("save_every", 0),
    ("eval_every", 0),
    ("workers", -1),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[name for name, _ in WRONG])
def test_number_out_of_its_range_is_refused_by_flag(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=rf"^--{name.replace('_', '-')} .+: give .+, or leave the flag out$"):
        replace(TrainSettings(), **{name: value})  # type: ignore[arg-type] # wrong on purpose


def test_bounds_themselves_are_numbers_a_run_can_have() -> None:
    bounds = {"steps": 1, "rest_lr": 0.0, "warmup": 0.0, "lr_floor": 1.0, "ce_weight": 1.0, "max_grad_norm": 0.0}
    assert replace(TrainSettings(), **bounds, workers=0, context=()).steps == 1  # type: ignore[arg-type] # by name


def test_refusal_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--shards", "nowhere", "--temperature", "0"])
    assert ended.value.code == 2
    assert capfd.readouterr().err == (
        "student: UsageError: --temperature 0.0: give a number above 0, or leave the flag out\n"
    )
