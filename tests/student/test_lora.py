"""Stage 3 with adapters: only they train, the run's student has them in its weights, PEFT reads them alone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_tuning import STEPS, data, figures, settings, student  # noqa: F401 -- fixtures

from arwkv_store.errors import ConfigurationDiffers, UsageError
from arwkv_student.model.loading import load_student
from arwkv_student.settings import TrainSettings
from arwkv_student.training.pipeline import train
from student_faults import train_until

pytest.importorskip("peft")


def asked(stage: str, student: Path, data: Path, out: Path) -> TrainSettings:  # noqa: F811
    return replace(
        settings(stage, student, data, out), lora_rank=4, sft_lr=1e-2, dpo_lr=3e-3, trained="spare-recall", report_to=()
    )


@pytest.mark.parametrize("stage", ["sft", pytest.param("dpo", marks=pytest.mark.slow)])
def test_interrupted_adapters_continue_bit_for_bit_and_end_in_the_students_weights(
    stage: str,
    student: Path,  # noqa: F811
    data: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    from peft import PeftModel

    whole, run = (asked(stage, student, data, tmp_path / name) for name in ("whole", "run"))
    train(whole)
    train_until(run, 5)
    kept = {path.name for path in (run.out / stage / "checkpoint-4").iterdir()}
    assert "adapter_model.safetensors" in kept
    assert "model.safetensors" not in kept
    train(run)
    losses = [line["loss"] for line in figures(run.out)]
    assert figures(run.out) == figures(whole.out)
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]
    start, merged, again = (load_file(folder / "model.safetensors") for folder in (student, run.out, whole.out))
    assert all(torch.equal(again[name], value) for name, value in merged.items())
    changed = {name for name in start if not torch.equal(start[name], merged[name])}
    kinds = {name.rpartition(".layers.")[2].partition(".")[2] for name in changed}
    assert {"mlp.up_proj.weight", "time_mix.value.weight", "time_mix.output.weight"} <= kinds
    assert not kinds & {"time_mix.receptance.weight", "time_mix.key.weight", "", "input_layernorm.weight"}
    adapted = PeftModel.from_pretrained(load_student(student), run.out / stage / "adapter").eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, load_student(run.out).eval()(ids).logits, rtol=1e-4, atol=1e-4)
    assert json.loads((run.out / "run.json").read_text())["lora_rank"] == 4
    with pytest.raises(ConfigurationDiffers, match="lora_rank: 4 there, 8 asked"):
        train(replace(run, lora_rank=8))


def test_what_does_not_go_with_adapters_is_refused(student: Path, data: Path, tmp_path: Path) -> None:  # noqa: F811
    run = asked("sft", student, data, tmp_path / "run")
    with pytest.raises(UsageError, match="--lora-rank 4 --fsdp: adapters are small and are not sharded"):
        train(replace(run, fsdp=True))
    with pytest.raises(UsageError, match="stage distill has no adapters, only sft and dpo"):
        train(replace(run, stage="distill"))
    assert not run.out.exists()
