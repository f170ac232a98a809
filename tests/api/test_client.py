"""The store's own reader over this service: `open_dataset("http://…")` gives what the folder gives."""

from pathlib import Path

import pytest

from api_serving import serving
from arwkv_store import NotFound, UsageError, open_dataset
from store_examples import assert_same_sample


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


def test_unknown_dataset_is_not_found(server: str) -> None:
    with pytest.raises(NotFound, match="not under any root"):
        open_dataset(f"{server}/v1/datasets/absent")


def test_key_comes_from_the_environment(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving("--root", str(root), "--api-key", "secret", cache=tmp_path) as (url, _):
        monkeypatch.delenv("ARWKV_API_KEY", raising=False)
        with pytest.raises(UsageError, match="ARWKV_API_KEY"):
            open_dataset(f"{url}/v1/datasets/train")
        monkeypatch.setenv("ARWKV_API_KEY", "secret")
        assert len(open_dataset(f"{url}/v1/datasets/train")) == 20
