"""A start in closed form: what the solve finds, and what a run makes of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from arwkv_store.errors import UsageError
from arwkv_student.bases.attention import BaseAttention
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import untrained_student
from arwkv_student.data.collate import ShardSamples
from arwkv_student.data.shards import open_shards
from arwkv_student.losses.objectives import error_and_size_2L
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.settings import Preset, TrainSettings
from arwkv_student.training.align import align_outputs
from arwkv_student.training.calibrate import Moments, calibrate, calibration_batches
from arwkv_student.training.pipeline import train
from student_faults import train_until

ALL_TOKENS = 10**9


def asked(shards: Path, base: Path, out: Path, **more: Any) -> TrainSettings:
    return TrainSettings(
        shards=(str(shards),), base=str(base), out=out, stage="align", head_dim=16, steps=4, batch_size=4,
        align_lr=3e-3, dtype="fp32", log_every=1, save_every=2, workers=0, init="calibrated", **more,
    )  # fmt: skip


def lines(run: Path, stage: str) -> list[dict[str, float]]:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["stage"] == stage]


def batches(shards: Path) -> tuple[dict[str, torch.Tensor], ...]:
    samples = ShardSamples(open_shards(str(shards), None))
    return tuple(calibration_batches(samples, [1.0], 4, ALL_TOKENS, seed=0))


def relative_errors(model: ArwkvForCausalLM, shards: Path, attention: BaseAttention | None = None) -> torch.Tensor:
    total_2L = torch.zeros(2, len(model.config.time_mix_layers))
    with torch.no_grad():
        for batch in batches(shards):
            total_2L += error_and_size_2L(*align_outputs(model, batch, attention), batch["attention_mask"])
    return (total_2L[0] / total_2L[1]).sqrt()


def test_solve_finds_a_projection_that_explains_everything() -> None:
    generator = torch.Generator().manual_seed(0)
    y_nW, weight_CW = torch.randn(500, 12, generator=generator), torch.randn(8, 12, generator=generator)
    moments = Moments.zero(torch.nn.Linear(12, 8, bias=False))
    for part_nW in y_nW.split(100):
        moments.add(part_nW, part_nW @ weight_CW.T)
    found_CW, error = moments.solved()
    torch.testing.assert_close(found_CW.float(), weight_CW, rtol=0, atol=5e-3)
    assert error < 2e-3


def test_layer_without_anything_to_read_stays_silent() -> None:
    moments = Moments.zero(torch.nn.Linear(12, 8, bias=False))
    moments.add(torch.zeros(5, 12), torch.ones(5, 8))
    weight_CW, error = moments.solved()
    assert not weight_CW.any()
    assert error == 1.0


@pytest.mark.parametrize("preset", ["arwkv", "rad-rwkv7"])
def test_error_it_reports_is_the_fitted_student_s(preset: Preset, tiny_teacher: Path, tiny_shards: Path) -> None:
    base = open_base(str(tiny_teacher))
    head_dim = 16 if preset == "arwkv" else None
    model = untrained_student(base, TrainSettings(preset=preset, head_dim=head_dim), 0)
    before_L = relative_errors(model, tiny_shards)
    reported = calibrate(model, base, batches(tiny_shards)).relative_errors
    after_L = relative_errors(model, tiny_shards)
    assert list(reported) == model.config.time_mix_layers
    torch.testing.assert_close(torch.tensor(list(reported.values())), after_L, rtol=1e-3, atol=1e-3)
    assert (after_L < 0.95 * before_L).all()


def test_error_it_reports_is_the_fitted_student_s_under_autocast_too(tiny_teacher: Path, tiny_shards: Path) -> None:
    base = open_base(str(tiny_teacher))
    model = untrained_student(base, TrainSettings(head_dim=16), 0)
    with torch.autocast("cpu", torch.bfloat16):
        reported = calibrate(model, base, batches(tiny_shards)).relative_errors
    with torch.autocast("cpu", torch.bfloat16):
        after_L = relative_errors(model, tiny_shards)
    torch.testing.assert_close(torch.tensor(list(reported.values())), after_L, rtol=0.01, atol=0.01)


def test_shards_of_boundaries_calibrate_alike(
    tiny_teacher: Path, tiny_shards: Path, tiny_boundary_shards: Path
) -> None:
    base = open_base(str(tiny_teacher))
    errors = []
    for shards in (tiny_shards, tiny_boundary_shards):
        model = untrained_student(base, TrainSettings(head_dim=16), 0)
        attention = BaseAttention(base, model.config.time_mix_layers) if shards is tiny_boundary_shards else None
        errors.append(torch.tensor(list(calibrate(model, base, batches(shards), attention).relative_errors.values())))
    torch.testing.assert_close(*errors, rtol=0.02, atol=0.02)


def test_value_heads_are_the_base_s_repeated(tiny_teacher: Path, tiny_shards: Path) -> None:
    base = open_base(str(tiny_teacher))
    model = untrained_student(base, TrainSettings(head_dim=16), 0)
    calibrate(model, base, batches(tiny_shards)[:1])
    ((_, stored_UC),) = base.tensors(["model.layers.0.self_attn.v_proj.weight"])
    heads = model.model.layers[0].time_mix.value.weight.unflatten(0, (-1, base.shape.head_dim))
    repeats = len(heads) // (len(stored_UC) // base.shape.head_dim)
    assert torch.equal(heads[::repeats].flatten(0, 1), stored_UC)
    assert torch.equal(heads[repeats - 1 :: repeats].flatten(0, 1), stored_UC)


def test_run_begins_closer_and_says_how_close(tiny_shards: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    for init in ("preset", "calibrated"):
        train(replace(asked(tiny_shards, tiny_teacher, tmp_path / init), init=init))
    plain, calibrated = (lines(tmp_path / init, "align")[0]["loss"] for init in ("preset", "calibrated"))
    assert calibrated < 0.95 * plain
    (line,) = lines(tmp_path / "calibrated", "calibrate")
    assert line["untrained_loss"] == pytest.approx(plain, rel=0.05)  # of other samples
    assert 0 < line["relative_error_0"] < 1
    assert lines(tmp_path / "preset", "calibrate") == []


def test_run_that_died_goes_on_from_its_checkpoint_and_is_not_calibrated_again(
    tiny_shards: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = asked(tiny_shards, tiny_teacher, tmp_path / "whole")
    train(whole)
    died = replace(whole, out=tmp_path / "died")
    train_until(died, 3)
    monkeypatch.setattr("arwkv_student.training.shard_stages.calibrate", None)
    train(died)
    assert lines(died.out, "calibrate") == lines(whole.out, "calibrate")
    assert [line["loss"] for line in lines(died.out, "align")] == [line["loss"] for line in lines(whole.out, "align")]


def test_distill_alone_starts_calibrated_too(tiny_shards: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    train(replace(asked(tiny_shards, tiny_teacher, tmp_path), stage="distill", steps=1))
    assert len(lines(tmp_path, "calibrate")) == 1


def test_what_cannot_be_calibrated_is_refused(tiny_shards: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two starts"):
        train(asked(tiny_shards, tiny_teacher, tmp_path / "both", start_from=str(tiny_teacher)))
    assert not (tmp_path / "both").exists()
