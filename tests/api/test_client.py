"""The store's own reader over this service: `open_dataset("http://…")` gives what the folder gives."""

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from api_eventually import eventually
from api_serving import serving
from arwkv_store import CorruptShard, NotFound, UsageError, open_dataset
from store_examples import assert_same_sample, write_example_dataset


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads go to the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "downloads"))
    monkeypatch.setenv("ARWKV_CACHE", str(tmp_path / "downloads"))


def test_remote_dataset_reads_like_the_folder(server: str, served_root: Path) -> None:
    remote, local = open_dataset(f"{server}/v1/datasets/train"), open_dataset(served_root / "train")
    assert remote.info == local.info
    assert list(remote.shards) == list(local.shards)
    assert remote.stats() == local.stats()
    assert len(remote) == len(local)
    for index in range(len(local)):
        assert_same_sample(remote[index], local[index])


NAMES = ["größe", "my data", "100%", "what?", "a#b", "50%25", "日本 語", "a+b;c&d=e", "back\\slash", "tab", "🙂"]


def test_every_name_that_the_service_lists_can_be_read(tmp_path: Path) -> None:
    for name in NAMES:
        write_example_dataset(tmp_path / "root" / name)
    with serving("--root", str(tmp_path / "root"), cache=tmp_path) as (url, _):
        listed = [item["name"] for item in httpx.get(f"{url}/v1/datasets").json()["items"]]
        assert sorted(listed) == sorted(NAMES)
        for name in listed:
            typed = [] if "%2" in name else [name]
            for written in (quote(name, safe=""), *typed):
                dataset = open_dataset(f"{url}/v1/datasets/{written}")
                assert len(dataset) == 10
                assert dataset[9].sample_id == 9


def test_unknown_dataset_is_not_found(server: str) -> None:
    with pytest.raises(NotFound, match="not under any root"):
        open_dataset(f"{server}/v1/datasets/absent")


def test_shard_that_the_service_knows_to_be_corrupt_is_not_asked_for_again(root: Path, tmp_path: Path) -> None:
    with serving("--root", str(root), "--scan-interval-s", "0.05", cache=tmp_path) as (url, _):
        uri = f"{url}/v1/datasets/train"
        dataset = open_dataset(uri)
        path = root / "train" / "shards" / "part-000001.arrow"
        os.truncate(path, path.stat().st_size - 1)
        eventually(lambda: httpx.get(f"{uri}/shards/1").json()["state"] == "corrupt")
        with pytest.raises(CorruptShard, match=r"part-000001\.arrow: \d+ bytes.*; make the part again") as refusal:
            dataset[4]
        assert refusal.value.exit_code == 3
        asked = httpx.get(f"{url}/metrics").text
        verified = subprocess.run(
            [sys.executable, "-c", "from arwkv_store.cli import main; main()", "verify", uri],
            capture_output=True,
            text=True,
        )
    assert 'route="/v1/datasets/{name}/shards/{part}/data",status="409"} 1.0' in asked
    assert verified.returncode == 3, verified.stderr
    assert "part-000001.arrow" in verified.stdout + verified.stderr


def test_key_comes_from_the_environment(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving("--root", str(root), "--api-key", "secret", cache=tmp_path) as (url, _):
        monkeypatch.delenv("ARWKV_API_KEY", raising=False)
        with pytest.raises(UsageError, match="ARWKV_API_KEY"):
            open_dataset(f"{url}/v1/datasets/train")
        monkeypatch.setenv("ARWKV_API_KEY", "secret")
        assert len(open_dataset(f"{url}/v1/datasets/train")) == 20
