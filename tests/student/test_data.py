import pytest
import torch

from arwkv_student.data.collate import OrderSampler

ROWS = [7, 4, 9]


def test_positions_run_on_over_epochs() -> None:
    whole = list(OrderSampler(ROWS, 45, seed=3))
    assert len(whole) == len(OrderSampler(ROWS, 45, seed=3)) == 45
    assert sorted(whole[:20]) == sorted(whole[20:40]) == list(range(20))
    assert whole[:20] != whole[20:40]


def test_order_depends_on_seed_alone() -> None:
    assert list(OrderSampler(ROWS, 45, seed=3)) == list(OrderSampler(ROWS, 45, seed=3))
    assert list(OrderSampler(ROWS, 45, seed=3))[:12] == list(OrderSampler(ROWS, 12, seed=3))
    assert list(OrderSampler(ROWS, 45, seed=3)) != list(OrderSampler(ROWS, 45, seed=4))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_step_sees_the_same_samples_at_every_world_size(world_size: int) -> None:
    from accelerate.data_loader import prepare_data_loader

    order, per_step = OrderSampler([100], 40, seed=0), 8
    seen: list[list[int]] = [[] for _ in range(5)]
    for rank in range(world_size):
        loader = torch.utils.data.DataLoader(torch.arange(100), batch_size=per_step // world_size, sampler=order)
        sharded = prepare_data_loader(loader, num_processes=world_size, process_index=rank, put_on_device=False)
        for step, batch in enumerate(sharded.batch_sampler):
            seen[step] += list(batch)
    expected = list(order)
    assert [sorted(step) for step in seen] == [sorted(expected[at : at + 8]) for at in range(0, 40, 8)]
