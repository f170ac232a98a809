"""Datasets in a bucket, indexed and served from where they are."""

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import httpx
import pytest
from fastapi.testclient import TestClient

from api_eventually import eventually
from api_serving import serving
from arwkv_api.config import Settings
from arwkv_api.index.sampling import DAY_S, Budget
from arwkv_api.index.scan import scan_root
from arwkv_store import open_dataset
from arwkv_store.commands.copy import copy_dataset
from store_examples import assert_same_sample, write_example_dataset
from store_s3 import s3_running, use_s3

Open = Callable[[Settings], TestClient]
_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The address of an S3 server."""
    with s3_running() as address:
        yield address


@pytest.fixture
def bucket(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """An empty bucket of the test's own."""
    s3fs = pytest.importorskip("s3fs")
    use_s3(monkeypatch, s3_server)
    monkeypatch.setenv("ARWKV_CACHE", str(tmp_path / "downloads"))
    name = f"{request.node.originalname.replace('_', '-')[:50]}-{next(_NUMBERS)}"
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
    return f"s3://{name}"


def _lasting(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The items without what differs from place to place."""
    volatile = {"created_at", "updated_at", "revision", "committed_at", "sampled_regions", "sampled_bytes"}
    items = answer.get("items", [answer])
    return [{key: value for key, value in item.items() if key not in volatile} for item in items]


def test_bucket_is_indexed_shown_and_verified_like_a_folder(
    bucket: str, root: Path, settings: Settings, open_client: Open, tmp_path: Path
) -> None:
    for name in ("train", "heldout"):
        list(copy_dataset(str(root / name), f"{bucket}/sets/{name}"))
    local = open_client(replace(settings, database=f"sqlite:///{tmp_path}/local.sqlite"))
    often = {"store_scan_interval_s": 0.5, "sample_requests_per_day": 10**9}
    remote = open_client(replace(settings, roots=(f"{bucket}/sets",), **often))
    for path in ("", "/train", "/train/stats", "/train/shards", "/train/samples/7", "/train/corpus"):
        here, there = (client.get(f"/v1/datasets{path}") for client in (local, remote))
        assert there.status_code == here.status_code == 200, path
        assert _lasting(here.json()) == _lasting(there.json()), path
    assert remote.post("/v1/datasets/train/shards/2/verify").json()["verified_at"]
    eventually(lambda: remote.get("/v1/datasets/train").json()["sampled_regions"] > 3)
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
    filesystem.rm(f"{bucket}/sets/train/shards/part-000004.json")
    eventually(lambda: remote.get("/v1/datasets/train").json()["shards"] == 4)
    filesystem.rm(f"{bucket}/sets/heldout/dataset.json")
    eventually(lambda: remote.get("/v1/datasets/heldout").json()["state"] == "missing")


@pytest.mark.parametrize("way", ["redirect", pytest.param("proxy", marks=pytest.mark.slow)])
def test_downloads_are_redirected_to_the_store_or_pass_through(bucket: str, tmp_path: Path, way: str) -> None:
    written = write_example_dataset(tmp_path / "one" / "train")
    list(copy_dataset(str(tmp_path / "one" / "train"), f"{bucket}/train"))
    with serving("--root", bucket, "--downloads", way, cache=tmp_path / way) as (url, _):
        address = f"{url}/v1/datasets/train/shards/1/data"
        answer = httpx.get(address)
        assert answer.status_code == (307 if way == "redirect" else 200)
        sha256 = httpx.head(address).headers["etag"].strip('"')
        whole = httpx.get(address, follow_redirects=True).content
        assert hashlib.sha256(whole).hexdigest() == sha256
        part = httpx.get(address, headers={"Range": "bytes=10-99"}, follow_redirects=True)
        assert (part.status_code, part.content) == (206, whole[10:100])
        several = httpx.get(address, headers={"Range": "bytes=0-3,50-59"})
        assert several.status_code == 206
        assert whole[50:60] in several.content
        assert httpx.get(f"{address}?direct=false").content == whole
        assert httpx.get(address, headers={"If-None-Match": f'"{sha256}"'}).status_code == 304
        for read, sample in zip(open_dataset(f"{url}/v1/datasets/train"), written, strict=True):
            assert_same_sample(read, sample)


@pytest.mark.parametrize(("others", "pages"), [(0, 1), pytest.param(1100, 2, marks=pytest.mark.slow)])
def test_rescan_of_an_unchanged_bucket_takes_one_list_request_for_1000_objects(
    bucket: str,
    root: Path,
    settings: Settings,
    open_client: Open,
    caplog: pytest.LogCaptureFixture,
    others: int,
    pages: int,
) -> None:
    list(copy_dataset(str(root / "train"), f"{bucket}/train"))
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
    filesystem.pipe({f"{bucket}/train/shards/other-{number}": b"x" for number in range(others)})
    quiet = replace(settings, roots=(bucket,), sample_requests_per_day=0, store_scan_interval_s=3600.0)
    client = open_client(quiet)
    assert client.get("/v1/datasets/train").json()["shards"] == 5
    with caplog.at_level(logging.DEBUG, logger="botocore"):
        caplog.clear()
        scan_root(client.app.state.service.engine, bucket)  # type: ignore[attr-defined]  # typed as any ASGI
        requests = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Making request for")]
    assert len(requests) == pages, requests
    assert all("ListObjectsV2" in request for request in requests)


def test_damaged_object_is_found_by_samples(bucket: str, root: Path, settings: Settings, open_client: Open) -> None:
    list(copy_dataset(str(root / "train"), f"{bucket}/train"))
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
    client = open_client(replace(settings, roots=(bucket,), sample_requests_per_day=10**9, sample_mb_per_day=1e9))
    manifest = json.loads(client.get("/v1/datasets/train/shards/3/manifest").content)
    name = f"{bucket}/train/shards/{manifest['files']['rows']['name']}"
    filesystem.pipe_file(name, bytes(byte ^ 1 for byte in filesystem.cat_file(name)))
    eventually(lambda: client.get("/v1/datasets/train/shards/3").json()["state"] == "corrupt")
    assert "make the part again" in client.get("/v1/datasets/train/shards/3").json()["problem"]


def test_budget_of_samples_bounds_requests_and_bytes_of_a_day() -> None:
    budget = Budget(requests=1000, size_bytes=1e9)
    assert budget.pause_s(100) == DAY_S * 2 / 1000
    assert budget.pause_s(10**8) == DAY_S / 10
    assert budget.pause_s(3 * 10**7) == pytest.approx(DAY_S * 0.03)


@pytest.mark.slow
def test_store_that_is_away_hides_no_folder(
    settings: Settings, open_client: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs")
    use_s3(monkeypatch, "http://127.0.0.1:9")
    with TestClient(
        __import__("arwkv_api.http.app", fromlist=["create_app"]).create_app(
            replace(settings, roots=(*settings.roots, "s3://away-bucket"))
        )
    ) as client:
        eventually(lambda: client.get("/v1/datasets/train").status_code == 200)
