"""Writing into object stores: a real S3 server, and fsspec's memory filesystem with faults."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from arwkv_store import ConfigurationDiffers, create_dataset, open_dataset
from arwkv_store.places import retry
from arwkv_store.places.object_folder import ObjectFolder
from arwkv_store.places.object_target import ObjectTarget
from store_examples import assert_same_sample, example_dataset_info, example_samples
from store_race import example_contenders, race
from store_s3 import s3_running, use_s3

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


def test_data_of_a_writer_that_died_stands_in_no_ones_way(memory: str) -> None:
    filesystem = fsspec.filesystem("memory")
    create_dataset(memory, example_dataset_info()).write_shard(0, example_samples(4, seed=1))
    filesystem.rm("/written/one/shards/part-000000.json")
    writer = create_dataset(memory, example_dataset_info())
    assert writer.missing_parts() == [0, 1, 2]
    writer.write_shard(0, example_samples(4))
    assert_same_sample(open_dataset(memory)[0], example_samples(4)[0])


def test_data_put_by_a_writer_that_looked_too_early_replaces_nothing(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (create_dataset(memory, example_dataset_info()) for _ in range(2))
    put, firsts = MemoryFileSystem.put_file, []

    def late(self: Any, *arguments: Any, **keywords: Any) -> None:
        if not firsts:
            firsts.append("the other commits between the look and the first object")
            firsts.append(one.write_shard(0, example_samples(4)))
        put(self, *arguments, **keywords)

    monkeypatch.setattr(MemoryFileSystem, "put_file", late)
    assert other.write_shard(0, example_samples(4, seed=1)) == firsts[1]
    names = {Path(name).name for name in fsspec.filesystem("memory").ls("/written/one/shards", detail=False)}
    assert names == {"part-000000.json", *(file.name for file in firsts[1].files.values())}
    for read, sample in zip(open_dataset(memory), example_samples(4), strict=True):
        assert_same_sample(read, sample)


def test_two_writers_in_any_order_of_steps_commit_once(memory: str, tmp_path: Path) -> None:
    contenders = example_contenders(tmp_path)
    for seed in range(60):
        race(f"{memory}/{seed}", contenders, seed)


@pytest.mark.slow
def test_two_writers_in_a_thousand_orders_of_steps_commit_once(memory: str, tmp_path: Path) -> None:
    contenders = example_contenders(tmp_path)
    for seed in range(1000):
        race(f"{memory}/{seed}", contenders, seed)


def test_store_whose_refusal_names_no_condition_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_running("--without-condition") as address:
        use_s3(monkeypatch, address)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("terse")
        one, other = (create_dataset("s3://terse/one", example_dataset_info()) for _ in range(2))
        first = one.write_shard(0, example_samples(4))
        assert other.write_shard(0, example_samples(4, seed=1)) == first
        late, looks, exists = ObjectTarget("s3://terse/one"), iter([False]), ObjectFolder.exists
        monkeypatch.setattr(ObjectFolder, "exists", lambda self, name: next(looks, True) and exists(self, name))
        assert late.begin(b"{}") == one.info.to_bytes()


def test_store_that_ignores_conditions_is_named(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create_dataset(f"{s3_bucket}/careful", example_dataset_info())
    assert caplog.text == ""
    with s3_running("--ignoring-conditions") as address:
        use_s3(monkeypatch, address)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("careless")
        writer = create_dataset("s3://careless/one", example_dataset_info())
        assert "s3://careless/one: this store ignores If-None-Match" in caplog.text
        writer.write_shard(0, example_samples(4))
        assert_same_sample(open_dataset("s3://careless/one")[0], example_samples(4)[0])


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
