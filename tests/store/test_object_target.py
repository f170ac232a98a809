"""Writing into object stores: a real S3 server, and fsspec's memory filesystem with faults."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from arwkv_store import ConfigurationDiffers, TryAgain, create_dataset, open_dataset
from arwkv_store.places import object_target, retry
from store_examples import assert_same_sample, example_dataset_info, example_samples

pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARWKV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.0)


@pytest.fixture
def memory() -> Iterator[str]:
    """A memory:// URI with nothing there."""
    yield "memory://written/one"
    filesystem = fsspec.filesystem("memory")
    if filesystem.exists("/written"):
        filesystem.rm("/written", recursive=True)


def test_dataset_is_made_in_s3_and_resumed(s3_bucket: str) -> None:
    uri, samples = f"{s3_bucket}/sets/one", example_samples(10)
    writer = create_dataset(uri, example_dataset_info())
    assert writer.missing_parts() == [0, 1, 2]
    writer.write_shard(1, samples[4:8])
    again = create_dataset(uri, example_dataset_info())
    assert again.missing_parts() == [0, 2]
    again.write_shard(0, samples[:4])
    again.write_shard(2, samples[8:])
    for read, sample in zip(open_dataset(uri), samples, strict=True):
        assert_same_sample(read, sample)
    with pytest.raises(ConfigurationDiffers, match="top_k"):
        create_dataset(uri, example_dataset_info(top_k=3))


def test_racing_writers_of_one_part_agree_in_s3(s3_bucket: str) -> None:
    uri, samples = f"{s3_bucket}/sets/one", example_samples(4)
    writers = [create_dataset(uri, example_dataset_info()) for _ in range(4)]
    barrier, hashes = threading.Barrier(4), []

    def race(writer: Any) -> None:
        barrier.wait()
        hashes.append(writer.write_shard(0, samples).files["rows"].sha256)

    racers = [threading.Thread(target=race, args=(writer,)) for writer in writers]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert hashes == [open_dataset(uri).shards[0].files["rows"].sha256] * 4


def test_first_commit_wins_over_other_content(memory: str) -> None:
    one, other = (create_dataset(memory, example_dataset_info()) for _ in range(2))
    first = one.write_shard(0, example_samples(4))
    assert other.write_shard(0, example_samples(4, seed=1)) == first
    assert_same_sample(open_dataset(memory)[0], example_samples(4)[0])


def test_data_of_a_writer_that_died_is_replaced_when_it_is_old(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    filesystem = fsspec.filesystem("memory")
    create_dataset(memory, example_dataset_info()).write_shard(0, example_samples(4, seed=1))
    filesystem.rm("/written/one/shards/part-000000.json")
    with pytest.raises(TryAgain, match="another writer"):
        create_dataset(memory, example_dataset_info()).write_shard(0, example_samples(4))
    assert create_dataset(memory, example_dataset_info()).missing_parts() == [0, 1, 2]
    monkeypatch.setattr(object_target, "ABANDONED_S", -1.0)
    create_dataset(memory, example_dataset_info()).write_shard(0, example_samples(4))
    assert_same_sample(open_dataset(memory)[0], example_samples(4)[0])


@pytest.mark.parametrize("call", ["pipe_file", "put_file"])
def test_answers_that_are_lost_lose_nothing(memory: str, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    plain, calls = getattr(MemoryFileSystem, call), iter(range(10_000))

    def forgetful(self: Any, *arguments: Any, **keywords: Any) -> None:
        if next(calls) % 3 == 1:
            raise OSError("connection reset")
        plain(self, *arguments, **keywords)
        if next(calls) % 2:
            raise OSError("connection reset after the server had acted")

    monkeypatch.setattr(MemoryFileSystem, call, forgetful)
    writer = create_dataset(memory, example_dataset_info())
    for part in range(3):
        writer.write_shard(part, example_samples(10)[4 * part : 4 * part + 4])
    for read, sample in zip(open_dataset(memory), example_samples(10), strict=True):
        assert_same_sample(read, sample)
