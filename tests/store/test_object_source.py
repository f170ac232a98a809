"""Reading from object stores: a real S3 server in a process of its own, and fsspec's memory filesystem with faults."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from arwkv_store import NotFound, TryAgain, UsageError, open_dataset, retry
from store_examples import assert_same_sample, write_example_dataset


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARWKV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.0)


@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
def test_s3_dataset_reads_like_the_folder(tmp_path: Path, s3_bucket: str) -> None:
    written = write_example_dataset(tmp_path / "data")
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file():
            filesystem.pipe_file(f"{s3_bucket}/sets/one/{path.relative_to(tmp_path / 'data')}", path.read_bytes())
    dataset = open_dataset(f"{s3_bucket}/sets/one")
    for read, sample in zip(dataset, written, strict=True):
        assert_same_sample(read, sample)
    assert_same_sample(pickle.loads(pickle.dumps(dataset))[5], written[5])
    with pytest.raises(NotFound, match=f"{s3_bucket}/sets/two"):
        open_dataset(f"{s3_bucket}/sets/two")


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[str]:
    """The example dataset at a memory:// URI."""
    write_example_dataset(tmp_path / "data")
    memory = fsspec.filesystem("memory")
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file():
            memory.pipe_file(f"/sets/one/{path.relative_to(tmp_path / 'data')}", path.read_bytes())
    yield "memory://sets/one"
    memory.rm("/sets", recursive=True)


def test_store_that_fails_now_and_then_loses_nothing(in_memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, plain = iter(range(10_000)), MemoryFileSystem.cat_file

    def flaky(self: Any, *arguments: Any, **keywords: Any) -> bytes:
        if next(calls) % 3:
            raise OSError("connection reset")
        content: bytes = plain(self, *arguments, **keywords)
        return content

    monkeypatch.setattr(MemoryFileSystem, "cat_file", flaky)
    assert [sample.sample_id for sample in open_dataset(in_memory)] == list(range(10))


def test_store_that_stays_away_is_given_up(in_memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(self: Any, *arguments: Any, **keywords: Any) -> bytes:
        raise TimeoutError("no answer")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", away)
    with pytest.raises(TryAgain, match=r"no answer.*6 attempts"):
        open_dataset(in_memory)


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(UsageError, match="nowhere://"):
        open_dataset("nowhere://bucket/name")


def test_hub_paths_go_through_the_hubs_filesystem(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: list[str] = []

    def cat_file(self: Any, path: str, **keywords: Any) -> bytes:
        asked.append(path)
        raise FileNotFoundError(path)

    monkeypatch.setattr(hub.HfFileSystem, "cat_file", cat_file)
    with pytest.raises(NotFound, match="hf://datasets/user/name"):
        open_dataset("hf://datasets/user/name")
    assert asked == ["datasets/user/name/dataset.json"]
