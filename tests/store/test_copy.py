"""Copying datasets between places."""

import json
import re
import shutil
from pathlib import Path

import fsspec
import pytest

from arwkv_store import ConfigurationDiffers, CorruptShard, TryAgain, create_dataset, open_dataset
from arwkv_store.cli import main
from arwkv_store.commands.copy import copy_dataset
from arwkv_store.commands.verify import verify_dataset
from arwkv_store.format.summary import SUMMARY_FILE
from store_examples import assert_same_sample, example_dataset_info, example_samples, write_example_dataset
from store_server import served

pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARWKV_CACHE", str(tmp_path / "cache"))


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of every file that is part of the dataset, by its place in the folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != SUMMARY_FILE)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_there_and_back_every_byte_is_the_same(tmp_path: Path, s3_bucket: str) -> None:
    write_example_dataset(tmp_path / "data")
    (tmp_path / "data" / "tokenizer.json").write_text("{}")
    list(copy_dataset(str(tmp_path / "data"), f"{s3_bucket}/sets/one"))
    list(copy_dataset(f"{s3_bucket}/sets/one", str(tmp_path / "back")))
    assert files_of(tmp_path / "back") == files_of(tmp_path / "data")


def test_objects_fetched_by_another_tool_are_a_dataset_in_a_folder(tmp_path: Path) -> None:
    samples, memory = write_example_dataset("memory://fetched/one"), fsspec.filesystem("memory")
    memory.get("/fetched/one", str(tmp_path / "one"), recursive=True)
    memory.rm("/fetched", recursive=True)
    names = sorted(path.name for path in (tmp_path / "one" / "shards").glob("part-000000.*"))
    assert re.fullmatch(r"(part-000000\.[0-9a-f]{32}(\.hidden)?\.arrow ){2}part-000000\.json", " ".join(names))
    for read, sample in zip(open_dataset(tmp_path / "one"), samples, strict=True):
        assert_same_sample(read, sample)
    verdict = list(verify_dataset(str(tmp_path / "one"), deep=True))[-1]
    assert (verdict.parts, verdict.damaged, verdict.unclaimed) == (3, {}, [])


def test_copy_continues_and_brings_what_is_new(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = str(tmp_path / "data"), str(tmp_path / "copy")
    writer, samples = create_dataset(source, example_dataset_info()), example_samples(10)
    writer.write_shard(0, samples[:4])
    writer.write_shard(1, samples[4:8])
    next(copy_dataset(source, target))
    assert len(open_dataset(target)) == 4
    writer.write_shard(2, samples[8:])
    monkeypatch.setattr("sys.argv", ["store", "copy", source, target, "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["parts"], said["parts_present_before"]) == (2, 1)
    for read, sample in zip(open_dataset(target), samples, strict=True):
        assert_same_sample(read, sample)


@pytest.mark.parametrize("place", ["data", "http"])
def test_disk_without_room_is_named_before_a_file_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    write_example_dataset(tmp_path / "data")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with served(tmp_path / "data") as service:
        with pytest.raises(TryAgain, match=r"\d+ bytes are needed there, 100 are free; free disk space"):
            list(copy_dataset(service.uri if place == "http" else str(tmp_path / "data"), str(tmp_path / "copy")))
        assert not [path for path in service.requests if "/data?" in path]
    assert len(open_dataset(tmp_path / "copy").shards) == 0


def test_damaged_part_is_never_committed_elsewhere(tmp_path: Path) -> None:
    write_example_dataset(tmp_path / "data")
    damaged = tmp_path / "data" / "shards" / "part-000001.arrow"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(CorruptShard, match=r"part-000001\.arrow"):
        list(copy_dataset(str(tmp_path / "data"), str(tmp_path / "copy")))
    assert len(open_dataset(tmp_path / "copy").shards) == 1
    assert not list((tmp_path / "copy" / "shards").glob(".new-*"))


def test_another_dataset_is_not_mixed_in(tmp_path: Path) -> None:
    write_example_dataset(tmp_path / "data")
    create_dataset(tmp_path / "copy", example_dataset_info(top_k=3))
    with pytest.raises(ConfigurationDiffers, match="top_k"):
        list(copy_dataset(str(tmp_path / "data"), str(tmp_path / "copy")))
