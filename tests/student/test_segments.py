"""Long samples in segments: the loss of whole ones, with gradients that end where a segment begins."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from arwkv_store import open_dataset
from arwkv_store.errors import UsageError
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.data.collate import collate
from arwkv_student.data.segments import segments
from arwkv_student.losses.objectives import Objective, distill_loss
from arwkv_student.model.cache import ArwkvCache
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.settings import TrainSettings
from arwkv_student.training.pipeline import train

OBJECTIVES = [Objective(500), Objective(500, "jsd", token_weight="error", ce_weight=0.3)]


@pytest.fixture(scope="module")
def batch(tiny_shards: Path) -> dict[str, torch.Tensor]:
    dataset = open_dataset(tiny_shards, columns=["logits", "token_stats"])
    return collate([dataset[row] for row in range(6)])


def student(teacher: Path, layers: tuple[int, ...]) -> ArwkvForCausalLM:
    base = open_base(str(teacher))
    torch.manual_seed(0)
    model = convert(base, student_config(base, "arwkv", {"head_dim": 16}, layers)).model
    for layer in layers:
        torch.nn.init.normal_(model.model.layers[layer].time_mix.output.weight, std=0.2)
    return model.train()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("layers", [(0, 1), (0,)])
def test_segments_have_the_loss_of_whole_samples(
    layers: tuple[int, ...], objective: Objective, tiny_teacher: Path, batch: dict[str, torch.Tensor]
) -> None:
    model = student(tiny_teacher, layers)
    with torch.no_grad():
        whole = model(input_ids=batch["input_ids"], head_loss=distill_loss(batch, objective)).loss
        cache, total = ArwkvCache(model.config), torch.zeros(())
        for segment in segments(batch, 11):
            part = model(
                input_ids=segment["input_ids"],
                past_key_values=cache,
                use_cache=True,
                head_loss=distill_loss(segment, objective),
            ).loss
            total = total + part * segment["predicts"].sum()
    torch.testing.assert_close(total / batch["predicts"].sum(), whole, rtol=1e-4, atol=1e-5)


def test_segments_hold_every_entry_once(batch: dict[str, torch.Tensor]) -> None:
    parts = list(segments(batch, 11))
    assert sum(len(part["ids"]) for part in parts) == len(batch["ids"])
    assert torch.equal(torch.cat([part["input_ids"] for part in parts], dim=1), batch["input_ids"])
    assert torch.equal(parts[0]["next_ids"][:, -1], parts[1]["input_ids"][:, 0])


def test_gradients_end_where_the_state_is_passed_on(tiny_teacher: Path, batch: dict[str, torch.Tensor]) -> None:
    model = student(tiny_teacher, (0,))
    cache = ArwkvCache(model.config)
    model.model(input_ids=batch["input_ids"][:, :8], past_key_values=cache, use_cache=True)
    passed = [cache.layers[0].state.wkv_BHDD, cache.layers[1].keys, cache.layers[1].values]
    assert all(state.requires_grad for state in passed)
    cache.detach()
    passed = [*cache.layers[0].state, cache.layers[1].keys, cache.layers[1].values]
    assert not any(state.requires_grad for state in passed)


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_run_in_segments_trains_and_begins_with_the_same_loss(
    tiny_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    def run(name: str, **more: Any) -> Path:
        train(
            TrainSettings(
                shards=(str(tiny_shards),), base=str(tiny_teacher), out=tmp_path / name, stage="distill", steps=6,
                head_dim=16, batch_size=6, dtype="fp32", workers=0, log_every=1, distill_lr=3e-3, **more,
            )
        )  # fmt: skip
        return tmp_path / name

    whole, one, several = run("whole"), run("one", segment=64), run("several", segment=13)
    assert losses(one) == pytest.approx(losses(whole), rel=1e-4)
    assert losses(several)[0] == pytest.approx(losses(whole)[0], rel=1e-5)
    assert losses(several)[-1] < losses(several)[0]
    assert losses(several)[-1] != pytest.approx(losses(whole)[-1], rel=1e-6)


def test_what_has_no_state_to_pass_on_is_refused(tiny_shards: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    for other in ("packing", "gradient_checkpointing", "fsdp"):
        with pytest.raises(UsageError, match=f"--segment 8 --{other.replace('_', '-')}: .*; leave one of them out"):
            TrainSettings(segment=8, **{other: True})  # type: ignore[arg-type] # by name
    keeping = TrainSettings(
        shards=(str(tiny_shards),), base=str(tiny_teacher), preset="transformer", out=tmp_path / "run", segment=8
    )
    with pytest.raises(UsageError, match="has no state to pass on"):
        train(keeping)
