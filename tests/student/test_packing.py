"""Documents packed into one row learn what they learn apart: state, token shift and v_first begin anew at each."""

from pathlib import Path

import numpy as np
import pytest
import torch

from arwkv_store import open_dataset
from arwkv_student.bases.attention import BaseAttention
from arwkv_student.bases.checkpoint import BaseCheckpoint, open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.data.balance import EqualWork, dealt
from arwkv_student.data.collate import ShardSamples, collate, rounded_length
from arwkv_student.data.mixture import ContextSchedule, MixtureSampler, truncated
from arwkv_student.losses.objectives import Objective, align_loss_L, distill_loss
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.training.align import align_outputs

DOCUMENTS = [(0, 48), (3, 7), (5, 33), (9, 20)]
"""Samples, and how many tokens of each."""


@pytest.fixture(scope="module")
def base(tiny_teacher: Path) -> BaseCheckpoint:
    return open_base(str(tiny_teacher))


@pytest.fixture(params=["arwkv", "rad-rwkv7", "hybrid"])
def student(request: pytest.FixtureRequest, base: BaseCheckpoint) -> ArwkvForCausalLM:
    torch.manual_seed(0)
    preset, layers = ("arwkv", [1]) if request.param == "hybrid" else (request.param, None)
    model = convert(base, student_config(base, preset, {"head_dim": 16}, layers)).model
    for parameter in model.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return model


def gradients(model: ArwkvForCausalLM, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_packed_distill_loss_and_gradients_are_the_documents_own(student: ArwkvForCausalLM, tiny_shards: Path) -> None:
    dataset = open_dataset(tiny_shards)
    samples = [truncated(dataset[row], tokens) for row, tokens in DOCUMENTS]

    def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return student(
            input_ids=batch["input_ids"],
            cu_seqlens=batch.get("cu_seqlens"),
            head_loss=distill_loss(batch, Objective(500)),
        ).loss

    packed = collate(samples, packing=True)
    assert packed["input_ids"].shape == (1, sum(len(sample.tokens) for sample in samples))
    apart = [collate([sample]) for sample in samples]
    weights = [float(batch["predicts"].sum()) for batch in apart]
    expected = sum(weight * loss(batch) for weight, batch in zip(weights, apart, strict=True)) / sum(weights)
    torch.testing.assert_close(loss(packed), expected, rtol=1e-5, atol=1e-6)
    own, theirs = gradients(student, loss(packed)), gradients(student, expected)
    assert own.keys() == theirs.keys()
    for name in own:
        torch.testing.assert_close(own[name], theirs[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", ["attention", "boundaries"])
def test_packed_align_loss_is_the_documents_own(
    kind: str, student: ArwkvForCausalLM, base: BaseCheckpoint, tiny_shards: Path, tiny_boundary_shards: Path
) -> None:
    dataset = open_dataset(tiny_shards if kind == "attention" else tiny_boundary_shards)
    attention = BaseAttention(base, student.config.time_mix_layers) if kind == "boundaries" else None
    samples = [truncated(dataset[row], tokens) for row, tokens in DOCUMENTS]

    def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return align_loss_L(*align_outputs(student, batch, attention), batch["attention_mask"])

    apart = [collate([sample]) for sample in samples]
    weights = [float(batch["attention_mask"].sum()) for batch in apart]
    expected = sum(weight * loss(batch) for weight, batch in zip(weights, apart, strict=True)) / sum(weights)
    torch.testing.assert_close(loss(collate(samples, packing=True)), expected, rtol=1e-5, atol=1e-6)


def test_packed_gradients_are_the_same_with_layers_recomputed(student: ArwkvForCausalLM, tiny_shards: Path) -> None:
    dataset = open_dataset(tiny_shards)
    batch = collate([truncated(dataset[row], tokens) for row, tokens in DOCUMENTS], packing=True)

    def own() -> dict[str, torch.Tensor]:
        head_loss = distill_loss(batch, Objective(500))
        loss = student(input_ids=batch["input_ids"], cu_seqlens=batch["cu_seqlens"], head_loss=head_loss).loss
        return gradients(student, loss)

    student.train()
    kept = own()
    student.gradient_checkpointing_enable({"use_reentrant": False})
    recomputed = own()
    assert kept.keys() == recomputed.keys()
    for name in kept:
        torch.testing.assert_close(kept[name], recomputed[name], msg=name)


def test_rounded_row_has_the_packed_rows_loss_and_gradient(student: ArwkvForCausalLM, tiny_shards: Path) -> None:
    dataset = open_dataset(tiny_shards)
    samples = [truncated(dataset[row], tokens) for row, tokens in DOCUMENTS]
    results = []
    for few_lengths in (False, True):
        batch = collate(samples, packing=True, few_lengths=few_lengths)
        loss = student(
            input_ids=batch["input_ids"],
            cu_seqlens=batch["cu_seqlens"],
            head_loss=distill_loss(batch, Objective(500)),
        ).loss
        results.append((loss, gradients(student, loss), batch["input_ids"].shape[1], len(batch["cu_seqlens"])))
    (plain, own, tokens, bounds), (rounded, theirs, more, more_bounds) = results
    assert more == rounded_length(tokens) > tokens
    assert more_bounds == bounds + 1
    torch.testing.assert_close(rounded, plain, rtol=1e-5, atol=1e-6)
    for name in own:
        torch.testing.assert_close(own[name], theirs[name], rtol=1e-4, atol=1e-6, msg=name)


def test_lengths_are_few_and_little_longer() -> None:
    lengths = range(1, 16_385)
    assert all(tokens <= rounded_length(tokens) < max(tokens + 64, 1.125 * tokens) for tokens in lengths)
    assert len(set(map(rounded_length, lengths))) == 48
    assert rounded_length(2048) == 2048


def test_dealt_rows_are_about_as_full_and_hold_every_sample_once() -> None:
    random = np.random.default_rng(0)
    for count, rows in ((4, 4), (64, 8), (37, 5)):
        lengths = random.integers(2, 2049, count).tolist()
        found = dealt(lengths, rows)
        assert sorted(place for row in found for place in row) == list(range(count))
        assert all(row == sorted(row) and row for row in found)
        tokens = [sum(lengths[place] for place in row) for row in found]
        assert tokens == sorted(tokens, reverse=True)
        assert tokens[0] <= max(4 / 3 * sum(lengths) / rows, max(lengths))


def test_processes_share_a_steps_tokens_equally_and_its_samples_do_not_change(tiny_shards: Path) -> None:
    samples = ShardSamples(open_dataset(tiny_shards))
    rows, schedule = [samples.datasets[0].shard_rows], ContextSchedule.of([16, 40], None)
    picks = MixtureSampler(rows, [1.0], 3, 12, 0, schedule)
    shared = [
        list(EqualWork(picks, samples.length, per_step=12, batches=2, rank=rank, processes=3)) for rank in range(3)
    ]
    assert [len(own) for own in shared] == [6, 6, 6]
    plain = list(picks)
    for step in range(3):
        dealt_picks = [pick for own in shared for batch in own[2 * step : 2 * step + 2] for pick in batch]
        assert sorted(dealt_picks) == sorted(plain[12 * step : 12 * step + 12])
    for pick in plain:
        assert samples.length(pick) == len(samples[pick].tokens)
