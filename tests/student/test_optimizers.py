"""`--optimizer`: what each trains how, and that a run with it continues."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from arwkv_store.errors import UsageError
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.optimizers.choice import EIGHT_BIT, make_optimizer
from arwkv_student.settings import TrainSettings
from arwkv_student.training.parameters import parameter_groups
from arwkv_student.training.pipeline import train
from arwkv_student.training.plan import StagePlan
from student_faults import train_until

HAS_EIGHT_BIT = any(importlib.util.find_spec(module.partition(".")[0]) for module in EIGHT_BIT)
OPTIONS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8}


def asked(shards: Path, base: Path, out: Path, optimizer: Literal["adamw", "adamw8bit", "muon"]) -> TrainSettings:
    return TrainSettings(
        shards=(str(shards),), base=str(base), out=out, stage="align", head_dim=16, steps=4, batch_size=4,
        align_lr=3e-3, dtype="fp32", log_every=1, save_every=2, workers=0, optimizer=optimizer,
    )  # fmt: skip


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_muon_moves_matrices_along_their_orthogonal_directions_and_vectors_as_adamw_does(tiny_teacher: Path) -> None:
    base = open_base(str(tiny_teacher))
    model = convert(base, student_config(base, "arwkv", {"head_dim": 16})).model
    groups = parameter_groups(model, StagePlan("distill", 1, 1e-3, 1, 1e-3), 0.0, muon=True)
    of_muon = {id(parameter) for group in groups if group["muon"] for parameter in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in of_muon}
    assert "model.layers.0.time_mix.key.weight" in names
    assert not [name for name in names if "embed" in name or "lm_head" in name or name.endswith(("shift_mix", "bonus"))]
    generator = torch.Generator().manual_seed(0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    make_optimizer("muon", groups, **OPTIONS).step()
    for name, parameter in model.named_parameters():
        moved = (before[name] - parameter.detach()).float()
        if name in names:
            values = torch.linalg.svdvals(moved)  # of a random matrix, or of its signs: 0.4
            assert values[len(values) // 2] > 0.6 * values[0], name
        else:
            torch.testing.assert_close(moved, 1e-3 * parameter.grad.sign(), rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    ["muon", pytest.param("adamw8bit", marks=pytest.mark.skipif(not HAS_EIGHT_BIT, reason="needs torchao"))],
)
def test_run_continues_bit_for_bit(
    optimizer: Literal["adamw8bit", "muon"], tiny_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    whole = asked(tiny_shards, tiny_teacher, tmp_path / "whole", optimizer)
    train(whole)
    stopped = replace(whole, out=tmp_path / "stopped")
    train_until(stopped, 3)
    train(stopped)
    assert losses(stopped.out) == losses(whole.out)
    assert losses(whole.out)[-1] < losses(whole.out)[0]
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "stopped/model.safetensors").read_bytes()


@pytest.mark.skipif(HAS_EIGHT_BIT, reason="its package is installed")
def test_eight_bit_moments_without_their_package_are_refused(
    tiny_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="neither torchao nor bitsandbytes is installed"):
        train(asked(tiny_shards, tiny_teacher, tmp_path / "run", "adamw8bit"))
