"""What the flags of stages 1 and 2 do, through `train`."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from arwkv_store import open_dataset
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import untrained_student
from arwkv_student.settings import TrainSettings
from arwkv_student.training.pipeline import train
from arwkv_student.training.shard_stages import plan_stage


def asked(shards: Path, base: Path, out: Path) -> TrainSettings:
    return TrainSettings(
        shards=(str(shards),), base=str(base), out=out, head_dim=16, steps=3, batch_size=4, align_lr=3e-3,
        distill_lr=3e-3, dtype="fp32", log_every=1, workers=0,
    )  # fmt: skip


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_bf16_with_layers_recomputed_trains_as_fp32_does(tiny_shards: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    plain = asked(tiny_shards, tiny_teacher, tmp_path / "fp32")
    train(plain)
    train(replace(plain, out=tmp_path / "recomputed", gradient_checkpointing=True))
    assert losses(tmp_path / "recomputed") == losses(tmp_path / "fp32")
    train(replace(plain, out=tmp_path / "bf16", dtype="bf16", gradient_checkpointing=True))
    assert losses(tmp_path / "bf16") == pytest.approx(losses(tmp_path / "fp32"), rel=0.03)
    assert losses(tmp_path / "bf16") != losses(tmp_path / "fp32")
    weights = load_file(tmp_path / "bf16" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("trained", "frozen"),
    [("all", ()), ("frozen-mlp", (".mlp.",)), ("time-mix", (".mlp.", "norm", "embed", "lm_head"))],
)
def test_trained_says_which_parameters_move(
    trained: str, frozen: tuple[str, ...], tiny_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    settings = replace(asked(tiny_shards, tiny_teacher, tmp_path / "run"), stage="distill", steps=2, trained=trained)
    before = untrained_student(open_base(str(tiny_teacher)), settings, settings.seed).state_dict()
    train(settings)
    after = load_file(tmp_path / "run" / "model.safetensors")
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight", "lm_head.weight",
                 "model.embed_tokens.weight", "model.layers.1.time_mix.key.weight"):  # fmt: skip
        is_frozen = any(part in name for part in frozen) and ".time_mix." not in name
        assert torch.equal(after[name], before[name]) == is_frozen, name


def test_length_is_steps_or_the_stages_tokens_or_all_stages_or_epochs(tiny_shards: Path) -> None:
    """24 samples; a step of 4."""
    dataset = open_dataset(tiny_shards, columns=[])
    per_step = 4 * dataset.tokens / len(dataset)
    settings = TrainSettings(batch_size=2, gradient_accumulation=2)

    def steps(**lengths: float) -> list[int]:
        chosen = replace(settings, **lengths)  # type: ignore[arg-type] # by name
        return [plan_stage(stage, chosen, [dataset]).steps for stage in ("align", "distill")]

    budgets = {"tokens": int(3 * per_step), "align_tokens": int(2 * per_step), "distill_tokens": int(5 * per_step)}
    assert steps() == [6, 6]
    assert steps(epochs=2.5) == [15, 15]
    assert steps(epochs=9.0, tokens=budgets["tokens"]) == [3, 3]
    assert steps(tokens=budgets["tokens"], align_tokens=budgets["align_tokens"]) == [2, 3]
    assert steps(**budgets) == [2, 5]
    assert steps(**budgets, steps=7) == [7, 7]
    assert steps(tokens=1) == [1, 1]
