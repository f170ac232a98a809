"""Which samples a step sees follows from seed and step alone."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from arwkv_store import ShardSampler, UsageError, open_dataset
from store_examples import example_dataset_info, write_example_dataset

ROWS = [7, 5, 9, 1, 8, 8, 3, 10]
SAMPLES = sum(ROWS)


def _sequence(steps: slice, world_size: int, **settings: int) -> list[int]:
    """The global sequence of samples over some steps, put together from all ranks."""
    ranks = [
        ShardSampler(
            ROWS,
            batch_size=12,
            epochs=3,
            seed=5,
            rank=rank,
            world_size=world_size,
            start_step=steps.start or 0,
            **settings,
        )
        for rank in range(world_size)
    ]
    length = None if steps.stop is None else steps.stop - (steps.start or 0)
    batches = itertools.islice(zip(*ranks, strict=True), length)
    return [index for together in batches for share in together for index in share]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_world_size_does_not_change_the_sequence(world_size: int) -> None:
    assert _sequence(slice(0, None), world_size) == _sequence(slice(0, None), 1)


@pytest.mark.parametrize("first", [1, 4, 5, 8])
@pytest.mark.parametrize("second", [1, 3])
def test_two_resumes_with_other_world_sizes_continue_the_sequence(first: int, second: int) -> None:
    whole = _sequence(slice(0, None), 1)
    parts = [
        _sequence(slice(0, first), 2),
        _sequence(slice(first, first + second), 4),
        _sequence(slice(first + second, None), 3),
    ]
    assert [index for part in parts for index in part] == whole


def test_every_epoch_sees_every_sample_once_across_batch_boundaries() -> None:
    stream = _sequence(slice(0, None), 2)
    assert len(stream) == 3 * SAMPLES // 12 * 12
    for epoch in range(2):
        assert sorted(stream[epoch * SAMPLES : (epoch + 1) * SAMPLES]) == list(range(SAMPLES))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def order(seed: int, epoch: int) -> NDArray[np.int64]:
        return ShardSampler(ROWS, batch_size=1, seed=seed).order(epoch)

    assert (order(1, 0) == order(1, 0)).all()
    assert (order(1, 0) != order(1, 1)).any()
    assert (order(1, 0) != order(2, 0)).any()
    assert (ShardSampler(ROWS, batch_size=1, shuffle=False).order(3) == np.arange(SAMPLES)).all()


def test_a_block_draws_on_few_shards() -> None:
    rows = [10] * 40
    order = ShardSampler(rows, batch_size=1, block_shards=4).order(0)
    for at in range(0, 400, 40):
        assert len(set(order[at : at + 40] // 10)) == 4


def test_settings_that_make_no_batch_are_refused() -> None:
    with pytest.raises(UsageError, match="12 is not a multiple of the world size 5"):
        ShardSampler(ROWS, batch_size=12, world_size=5)
    with pytest.raises(UsageError, match="rank 2 with world size 2; give a rank from 0 to 1"):
        ShardSampler(ROWS, batch_size=12, world_size=2, rank=2)
    with pytest.raises(UsageError, match="are less than one batch of 100"):
        ShardSampler(ROWS, batch_size=100)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_workers_do_not_change_the_sequence(tmp_path: Path, workers: int) -> None:
    data = pytest.importorskip("torch.utils.data")
    write_example_dataset(tmp_path, info=example_dataset_info(samples=20))
    dataset = open_dataset(tmp_path)
    sampler = ShardSampler(dataset.shard_rows, batch_size=4, epochs=2, seed=3)
    loader = data.DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=_ids)
    assert list(loader) == list(sampler)


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2), (4, 1)])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_ranks_with_workers_continue_the_sequence_over_two_resumes(world_size: int, workers: int) -> None:
    data = pytest.importorskip("torch.utils.data")
    whole, seen = _sequence(slice(0, None), 1), list[int]()
    for first, last in ((0, 3), (3, 7), (7, None)):
        ranks = []
        for rank in range(world_size):
            place = {"rank": rank, "world_size": world_size, "start_step": first}
            sampler = ShardSampler(ROWS, batch_size=12, epochs=3, seed=5, **place)
            loader = data.DataLoader(range(SAMPLES), batch_sampler=sampler, num_workers=workers, collate_fn=list)
            # A run that is killed leaves its workers with batches that were fetched ahead.
            ranks.append(list(itertools.islice(loader, None if last is None else last - first)))
        seen += [index for together in zip(*ranks, strict=True) for share in together for index in share]
    assert seen == whole


def _ids(samples: list[object]) -> list[int]:
    return [sample.sample_id for sample in samples]  # type: ignore[attr-defined]  # a Sample


READER = """
import sys, time
from arwkv_store import ShardSampler, open_dataset
dataset = open_dataset(sys.argv[1])
for step, batch in enumerate(ShardSampler(dataset.shard_rows, batch_size=2, epochs=50, start_step=int(sys.argv[2]))):
    ids = [dataset[i].sample_id for i in batch]
    print(int(sys.argv[2]) + step, *ids, flush=True)
"""


def test_sequence_survives_sigkill(tmp_path: Path) -> None:
    write_example_dataset(tmp_path)
    seen: list[list[int]] = []
    while len(seen) < 250:
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, str(tmp_path), str(len(seen))], stdout=subprocess.PIPE, text=True
        )
        assert reader.stdout is not None
        lines = list(itertools.islice(reader.stdout, 100))
        os.kill(reader.pid, signal.SIGKILL)
        reader.wait()
        reader.stdout.close()
        assert lines
        for line in lines:
            step, *ids = map(int, line.split())
            assert step == len(seen)
            seen.append(ids)
    assert seen == list(ShardSampler([4, 4, 2], batch_size=2, epochs=50))[: len(seen)]
