import numpy as np
import pytest
import torch

from arwkv_student.data import OrderSampler, SampleOrder


@pytest.mark.parametrize("samples", [1, 7, 512, 5000])
def test_each_epoch_is_a_permutation(samples: int) -> None:
    order = SampleOrder(samples, seed=3)
    for epoch in (0, 1):
        assert sorted(order.epoch(epoch)) == list(range(samples))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    order = SampleOrder(1000, seed=3, block=16)
    assert np.array_equal(order.epoch(1), SampleOrder(1000, seed=3, block=16).epoch(1))
    assert not np.array_equal(order.epoch(0), order.epoch(1))
    assert not np.array_equal(order.epoch(0), SampleOrder(1000, seed=4, block=16).epoch(0))


def test_neighbours_in_the_order_are_near_in_the_shards() -> None:
    order = SampleOrder(100_000, seed=0).epoch(0)
    first = order[:4096]
    assert len({index // 512 for index in first}) <= 9


def test_positions_run_on_over_epochs() -> None:
    order = SampleOrder(10, seed=0)
    whole = list(order.indices(0, 35))
    assert whole == [int(i) for epoch in range(4) for i in order.epoch(epoch)][:35]
    assert list(order.indices(13, 12)) == whole[13:25]
    assert list(OrderSampler(order, 35)) == whole


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_step_sees_the_same_samples_at_every_world_size(world_size: int) -> None:
    from accelerate.data_loader import prepare_data_loader

    order, per_step = SampleOrder(100, seed=0), 8
    seen: list[list[int]] = [[] for _ in range(5)]
    for rank in range(world_size):
        loader = torch.utils.data.DataLoader(
            torch.arange(100), batch_size=per_step // world_size, sampler=OrderSampler(order, 40)
        )
        sharded = prepare_data_loader(loader, num_processes=world_size, process_index=rank, put_on_device=False)
        for step, batch in enumerate(sharded.batch_sampler):
            seen[step] += list(batch)
    expected = list(order.indices(0, 40))
    assert [sorted(step) for step in seen] == [sorted(expected[at : at + 8]) for at in range(0, 40, 8)]
