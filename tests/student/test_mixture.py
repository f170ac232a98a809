"""Which sample a step sees, and how much of it."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from api_eventually import eventually
from arwkv_store import open_dataset
from arwkv_store.errors import UsageError
from arwkv_student.data.collate import OrderSampler
from arwkv_student.data.mixture import ContextSchedule, MixtureSampler, truncated
from store_examples import example_dataset_info, write_example_dataset
from store_server import parts_fetched, served

ROWS = [[7, 4, 9], [30]]


def test_one_set_is_read_in_the_stores_order() -> None:
    picks = list(MixtureSampler(ROWS[:1], [1.0], steps=9, per_step=5, seed=3))
    assert [pick.sample for pick in picks] == list(OrderSampler(ROWS[0], 45, seed=3))
    assert {pick.context for pick in picks} == {None}


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, 9.0)])
def test_no_stretch_of_the_run_is_far_from_the_weights(weights: tuple[float, float]) -> None:
    chosen = [pick.shard_set for pick in MixtureSampler(ROWS, weights, steps=100, per_step=4, seed=0)]
    counted = np.cumsum(np.array(chosen) == 0)
    expected = weights[0] / sum(weights) * np.arange(1, 401)
    assert np.abs(counted - expected).max() <= 1


def test_sizes_as_weights_see_every_sample_once_an_epoch() -> None:
    picks = list(MixtureSampler(ROWS, [20.0, 30.0], steps=10, per_step=5, seed=1))
    assert set(Counter(picks).values()) == {1}
    assert len(picks) == 50


def test_remote_parts_are_fetched_before_their_samples_are_picked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARWKV_CACHE", str(tmp_path / "cache"))
    write_example_dataset(tmp_path / "data", info=example_dataset_info(samples=30, samples_per_part=2, layers=()))
    with served(tmp_path / "data") as service:
        remote = [open_dataset(service.uri), open_dataset(tmp_path / "data")]
        asked = [dataset.shard_rows for dataset in remote], [0.5, 0.5]
        picks = MixtureSampler(*asked, steps=2, per_step=8, seed=1, datasets=remote)
        expected = list(MixtureSampler(*asked, steps=2, per_step=8, seed=1))
        assert list(picks) == expected
        used = {pick.sample // 2 for pick in expected if pick.shard_set == 0}
        soon = iter(picks)
        next(soon)
        eventually(lambda: used <= (found := parts_fetched(service)) and len(found) <= len(used) + 1)


def test_order_depends_on_seed_and_position_alone() -> None:
    long, short = (list(MixtureSampler(ROWS, [0.7, 0.3], steps, 8, seed=5)) for steps in (20, 10))
    assert long[:80] == short
    assert long != list(MixtureSampler(ROWS, [0.7, 0.3], 20, 8, seed=6))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_step_sees_the_same_samples_of_several_sets_at_every_world_size(world_size: int) -> None:
    from accelerate.data_loader import prepare_data_loader

    order, per_step = MixtureSampler(ROWS, [0.7, 0.3], steps=5, per_step=8, seed=0), 8
    seen: list[list[object]] = [[] for _ in range(5)]
    for rank in range(world_size):
        loader = torch.utils.data.DataLoader(
            torch.arange(100),  # type: ignore[arg-type] # only its length is read
            batch_size=per_step // world_size,
            sampler=order,
        )
        sharded = prepare_data_loader(loader, num_processes=world_size, process_index=rank, put_on_device=False)
        for step, batch in enumerate(sharded.batch_sampler):
            seen[step] += list(batch)
    expected = list(order)
    assert [sorted(step) for step in seen] == [sorted(expected[at : at + 8]) for at in range(0, 40, 8)]


def test_contexts_follow_one_another_by_their_shares() -> None:
    schedule = ContextSchedule.of((16, 32, 64), (0.5, 0.3, 0.2))
    assert [schedule.at(step, 10) for step in range(10)] == [16] * 5 + [32] * 3 + [64] * 2
    contexts = [pick.context for pick in MixtureSampler(ROWS[:1], [1.0], 10, 2, seed=0, schedule=schedule)]
    assert contexts == [16] * 10 + [32] * 6 + [64] * 4
    assert schedule.mean_tokens(40.0) == pytest.approx(0.5 * 16 + 0.3 * 32 + 0.2 * 40)
    assert ContextSchedule.of((8, 16), None).at(4, 10) == 8


def test_schedules_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="too short; give at least 2 tokens"):
        ContextSchedule.of((1, 8), None)
    with pytest.raises(UsageError, match="a positive share for each of the 2 contexts"):
        ContextSchedule.of((4, 8), (1.0,))


def test_cut_sample_holds_what_a_shorter_one_would(tiny_shards: Path) -> None:
    whole = open_dataset(tiny_shards)[0]
    short = truncated(whole, 10)
    assert len(short.tokens) == len(short.loss_mask) == 10
    assert short.logits is not None
    assert whole.logits is not None
    assert len(short.logits.ids) == int(short.logits.counts.sum()) == 160
    np.testing.assert_array_equal(short.logits.logprobs, whole.logits.logprobs[:160])
    assert short.true_logprob is not None
    assert len(short.true_logprob) == 9
    assert all(len(states) == 10 for states in short.hidden.values())
    assert truncated(whole, 1000) is whole
