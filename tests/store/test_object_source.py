"""Reading from object stores: a real S3 server in a process of its own, and fsspec's memory filesystem with faults."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from arwkv_store import CorruptShard, NotFound, TryAgain, UsageError, open_dataset
from arwkv_store.commands.verify import verify_dataset
from arwkv_store.places import object_source, retry
from store_examples import assert_same_sample, write_example_dataset
from store_hub import hub_of
from store_s3 import s3_running, use_s3


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
    _put(tmp_path / "data", "/sets/one")
    yield "memory://sets/one"
    fsspec.filesystem("memory").rm("/sets", recursive=True)


def _put(folder: Path, place: str) -> None:
    memory = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            memory.pipe_file(f"{place}/{path.relative_to(folder)}", path.read_bytes())


def test_names_are_no_patterns(in_memory: str, tmp_path: Path) -> None:
    _put(tmp_path / "data", "/sets/run[1]*")
    assert len(list(open_dataset("memory://sets/run[1]*"))) == 10


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


def test_missing_data_file_is_damage_that_verifying_names_and_passes(in_memory: str) -> None:
    fsspec.filesystem("memory").rm("/sets/one/shards/part-000001.arrow")
    with pytest.raises(CorruptShard, match=r"part-000001\.arrow: missing"):
        open_dataset(in_memory)[4]
    verdict = list(verify_dataset(in_memory))[-1]
    assert (verdict.parts, list(verdict.damaged)) == (3, [1])


@pytest.mark.parametrize("length", [0, 1000, 1_000_000])
def test_object_of_another_length_is_damage_that_verifying_names_and_passes(in_memory: str, length: int) -> None:
    store = fsspec.filesystem("memory")
    path = "/sets/one/shards/part-000001.arrow"
    store.pipe_file(path, store.cat_file(path).ljust(length, b"\0")[:length])
    with pytest.raises(CorruptShard, match=rf"part-000001\.arrow: {length} bytes, committed with"):
        open_dataset(in_memory)[4]
    verdict = list(verify_dataset(in_memory))[-1]
    assert (verdict.parts, list(verdict.damaged)) == (3, [1])


def test_object_cut_while_it_is_read_is_damage(in_memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cat_file = MemoryFileSystem.cat_file

    def cutting(self: Any, path: str, *arguments: Any, **keywords: Any) -> bytes:
        if path.endswith(".arrow"):
            self.pipe_file(path, self.store[path].getvalue()[:1000])
        content: bytes = cat_file(self, path, *arguments, **keywords)
        return content

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cutting)
    with pytest.raises(CorruptShard, match="1000 bytes, committed with"):
        open_dataset(in_memory)[0]


def test_truncated_object_in_s3_is_damage(tmp_path: Path, s3_bucket: str) -> None:
    write_example_dataset(f"{s3_bucket}/one")
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    (path,) = store.glob(f"{s3_bucket}/one/shards/part-000001.*.hidden.arrow")
    store.pipe_file(path, store.cat_file(path)[:1000])
    verdict = list(verify_dataset(f"{s3_bucket}/one"))[-1]
    assert (verdict.parts, list(verdict.damaged)) == (3, [1])


def test_files_are_fetched_in_pieces_at_once(in_memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_source, "PIECE_BYTES", 100)
    at_once, cat_ranges = [], MemoryFileSystem.cat_ranges

    def counted(self: Any, paths: list[str], *arguments: Any, **keywords: Any) -> list[bytes]:
        at_once.append(len(paths))
        content: list[bytes] = cat_ranges(self, paths, *arguments, **keywords)
        return content

    monkeypatch.setattr(MemoryFileSystem, "cat_ranges", counted)
    assert [sample.sample_id for sample in open_dataset(in_memory)] == list(range(10))
    assert max(at_once[1:]) == object_source.PIECES_AT_ONCE


def test_larger_document_than_any_is_not_read_whole(in_memory: str) -> None:
    fsspec.filesystem("memory").pipe_file("/sets/one/shards/part-000001.json", bytes(3 << 20))
    with pytest.raises(CorruptShard, match=r"part-000001\.json: longer than"):
        open_dataset(in_memory)


def test_s3_without_credentials_is_a_usage_error(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    with pytest.raises(UsageError, match="redentials"):
        open_dataset(f"{s3_bucket}/sets/one")


@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
def test_s3_that_goes_away_while_it_is_read_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    monkeypatch.setattr(retry, "ATTEMPTS", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    write_example_dataset(tmp_path / "data")
    with s3_running() as address:
        use_s3(monkeypatch, address)
        filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
        filesystem.mkdir("going")
        filesystem.put(str(tmp_path / "data"), "s3://going/one", recursive=True)
        dataset = open_dataset("s3://going/one")
        assert dataset[0].sample_id == 0
    with pytest.raises(TryAgain, match=r"part-000001.*EndpointConnectionError"):
        dataset[4]


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


READ = """
import sys
sys.path.insert(0, sys.argv[1])
from arwkv_store import NotFound, open_dataset
from store_examples import assert_same_sample, example_samples
for read, sample in zip(open_dataset("hf://datasets/user/name"), example_samples(10), strict=True):
    assert_same_sample(read, sample)
try:
    open_dataset("hf://datasets/user/other")
except NotFound as error:
    print(error)
"""


def test_dataset_is_read_from_a_hub(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    write_example_dataset(tmp_path / "data")
    with hub_of(tmp_path / "data") as endpoint:
        # In a process of its own: the Hub's library takes its endpoint when it is imported.
        command = [sys.executable, "-c", READ, str(Path(__file__).parents[1])]
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        reader = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert reader.returncode == 0, reader.stderr
    assert reader.stdout.startswith("hf://datasets/user/other/dataset.json: ")
