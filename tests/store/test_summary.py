"""The summary of manifests spares time. Whatever is wrong with it, a dataset is what its manifests say."""

import hashlib
import logging
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest

from api_many import many_shards
from arwkv_store import CorruptShard, create_dataset, open_dataset
from arwkv_store.commands.copy import copy_dataset
from arwkv_store.dataset import summarize as milestones
from arwkv_store.dataset.summarize import is_milestone, summarize
from arwkv_store.format.file_hash import sha256_of_file
from arwkv_store.format.summary import SUMMARY_FILE, Summary
from arwkv_store.places import object_source
from arwkv_store.places.source import LocalSource
from store_examples import example_dataset_info, example_samples, write_example_dataset


def _parts(uri: Path | str) -> list[tuple[int, int, int]]:
    dataset = open_dataset(uri)
    assert dataset.tokens == sum(manifest.tokens for manifest in dataset.shards)
    assert len(dataset) == dataset.shard_rows.sum()
    return [(manifest.part, manifest.rows, manifest.tokens) for manifest in dataset.shards]


@pytest.fixture
def summarized(tmp_path: Path) -> Path:
    """A dataset of 8 parts, of which part 6 is not committed, with its summary."""
    info = example_dataset_info(samples=32)
    write_example_dataset(tmp_path / "data", info=info, parts=[0, 1, 2, 3, 4, 5, 7])
    summarize(str(tmp_path / "data"))
    return tmp_path / "data"


def test_opening_reads_no_manifest_that_the_summary_knows(summarized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _parts(summarized)
    read: list[int] = []
    real = LocalSource.manifest
    monkeypatch.setattr(LocalSource, "manifest", lambda self, part: read.append(part) or real(self, part))
    dataset = open_dataset(summarized)
    assert read == []
    assert (len(dataset), dataset.tokens) == (sum(rows for _, rows, _ in expected), sum(n for _, _, n in expected))
    write_example_dataset(summarized, info=dataset.info, parts=[6])
    read.clear()
    assert [part for part, _, _ in _parts(summarized)] == list(range(8))
    assert read[0] == 6  # to open; the others only to list them
    (summarized / SUMMARY_FILE).unlink()
    assert [part for part, _, _ in _parts(summarized)] == list(range(8))


def test_no_summary_changes_what_a_dataset_is(summarized: Path, tmp_path: Path) -> None:
    expected, path = _parts(summarized), summarized / SUMMARY_FILE
    sound, dataset_hash = path.read_bytes(), sha256_of_file(summarized / "dataset.json")
    assert Summary.from_bytes(sound, dataset_hash) is not None
    for at in range(len(sound)):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 0x10]) + sound[at + 1 :])
        assert Summary.from_bytes(path.read_bytes(), dataset_hash) is None
    assert _parts(summarized) == expected
    bomb = (
        Summary(*np.zeros((4, 0), np.int64)).to_bytes(dataset_hash)[:-32].replace(b'"parts": 0', b'"parts": 99999999')
    )
    assert Summary.from_bytes(bomb + hashlib.sha256(bomb).digest(), dataset_hash) is None
    for wrong in (b"", sound[:-1], sound + b"x", b"{}\n" + bytes(40)):
        path.write_bytes(wrong)
        assert _parts(summarized) == expected
    write_example_dataset(tmp_path / "other")
    summarize(str(tmp_path / "other"))
    shutil.copy(tmp_path / "other" / SUMMARY_FILE, path)
    assert _parts(summarized) == expected
    path.unlink()
    path.mkdir()
    assert _parts(summarized) == expected


def test_manifest_that_went_or_was_replaced_is_seen(summarized: Path) -> None:
    shards, info = summarized / "shards", open_dataset(summarized).info
    (shards / "part-000002.json").unlink()
    assert [part for part, _, _ in _parts(summarized)] == [0, 1, 3, 4, 5, 7]
    (shards / "part-000003.json").unlink()
    create_dataset(summarized, info).write_shard(3, example_samples(2, first_sample_id=12, info=info))
    assert (3, 2) in [(part, rows) for part, rows, _ in _parts(summarized)]
    assert len(summarize(str(summarized)).parts) == 6


def test_summary_is_written_at_milestones_and_by_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [n for n in range(1, 1025) if is_milestone(n)] == [64, 128, 256, 512, 1024]
    monkeypatch.setattr(milestones, "FIRST_SUMMARY", 2)
    write_example_dataset(tmp_path / "data", parts=[0])
    assert not (tmp_path / "data" / SUMMARY_FILE).exists()
    write_example_dataset(tmp_path / "data2")
    assert (tmp_path / "data2" / SUMMARY_FILE).exists()
    list(copy_dataset(str(tmp_path / "data2"), "memory://summarized"))
    assert fsspec.filesystem("memory").exists(f"/summarized/{SUMMARY_FILE}")
    assert _parts("memory://summarized") == _parts(tmp_path / "data2")


def test_summary_that_cannot_be_written_fails_no_capture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(milestones, "FIRST_SUMMARY", 1)
    info = example_dataset_info()
    writer = create_dataset(tmp_path, info)
    (tmp_path / SUMMARY_FILE).mkdir()
    writer.write_shard(0, example_samples(4, info=info))
    assert "no summary of manifests was written" in caplog.text
    assert len(open_dataset(tmp_path)) == 4


@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
def test_very_many_parts_in_a_bucket_are_opened_by_one_read_and_one_list(
    tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ARWKV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(object_source, "LISTED_PARTS", 10)
    many_shards(tmp_path / "data", 30)
    list(copy_dataset(str(tmp_path / "data"), f"{s3_bucket}/data"))
    filesystem, uri = fsspec.filesystem("s3", skip_instance_cache=True), f"{s3_bucket}/data"
    with caplog.at_level(logging.DEBUG, logger="botocore"):
        assert len(open_dataset(uri)) == 120
    asked = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Making request for")]
    assert len(asked) == 3, asked  # dataset.json, the summary, and what came after it
    filesystem.rm(f"{uri}/shards/part-000029.json")
    summarize(uri)
    filesystem.pipe_file(f"{uri}/shards/part-000029.json", (tmp_path / "data/shards/part-000029.json").read_bytes())
    assert len(open_dataset(uri)) == 120
    filesystem.rm(f"{uri}/shards/part-000005.json")
    with pytest.raises(CorruptShard, match=r'part-000005.json: removed; run "store reindex s3://'):
        open_dataset(uri)[20]
    summarize(uri)
    assert len(open_dataset(uri)) == 116
    assert np.all(np.diff(summarize(uri).parts) >= 1)
