"""Shards over HTTP: their list, their documents, and what is said of those that went bad."""

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from api_eventually import eventually
from arwkv_api.http.models import ShardPage
from arwkv_api.index import query as catalogue
from arwkv_api.kept import Kept
from arwkv_api.roots import manifests
from arwkv_api.roots.manifests import MEMORY_PER_BYTE
from arwkv_store import ShardManifest, open_dataset
from store_examples import example_dataset_info, write_example_dataset

SHARDS = "/v1/datasets/train/shards"


def test_list_has_every_committed_part(client: TestClient, root: Path) -> None:
    items = client.get(SHARDS).json()["items"]
    manifests = open_dataset(root / "train").shards
    assert [item["part"] for item in items] == [manifest.part for manifest in manifests]
    for item, manifest in zip(items, manifests, strict=True):
        assert (item["samples"], item["tokens"]) == (manifest.rows, manifest.tokens)
        assert item["size_bytes"] == manifest.size_bytes
        assert (item["first_sample_id"], item["last_sample_id"]) == (manifest.first_sample_id, manifest.last_sample_id)
        assert item["entropy_mean"] == manifest.stats.entropy_mean
        assert (item["state"], item["manifest"]) == ("committed", None)


def test_page_is_written_as_its_model_writes_it(client: TestClient) -> None:
    for query in ("limit=2", "include=manifest", "state=corrupt"):
        body = client.get(f"{SHARDS}?{query}").content
        assert ShardPage.model_validate_json(body).model_dump_json().encode() == body


def test_list_includes_raw_manifests_when_asked(client: TestClient, root: Path) -> None:
    for item in client.get(f"{SHARDS}?include=manifest").json()["items"]:
        path = root / "train" / "shards" / f"part-{item['part']:06d}.json"
        assert item["manifest"].encode() == path.read_bytes()


def test_page_with_manifests_ends_before_it_is_large(
    client: TestClient, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [(root / "train" / "shards" / f"part-{part:06d}.json").stat().st_size for part in range(5)]
    monkeypatch.setattr(catalogue, "MANIFEST_PAGE_BYTES", sizes[0] + sizes[1])
    pages, cursor = [], ""
    while cursor is not None:
        page = client.get(f"{SHARDS}?include=manifest{cursor}").json()
        pages.append([item["part"] for item in page["items"]])
        cursor = page["next_cursor"] and f"&cursor={page['next_cursor']}"
    assert pages[0] == [0, 1]
    assert [part for page in pages for part in page] == [0, 1, 2, 3, 4]
    monkeypatch.setattr(catalogue, "MANIFEST_PAGE_BYTES", 1)
    assert len(client.get(f"{SHARDS}?include=manifest&limit=4").json()["items"]) == 1


def test_manifest_is_the_raw_file(client: TestClient, root: Path) -> None:
    raw = client.get(f"{SHARDS}/3/manifest").content
    assert raw == (root / "train" / "shards" / "part-000003.json").read_bytes()
    assert ShardManifest.from_bytes(raw, "answer").part == 3


def test_statistics_are_the_manifests(client: TestClient, root: Path) -> None:
    expected = open_dataset(root / "train").shards[2].stats.model_dump(mode="json")
    assert client.get(f"{SHARDS}/2/stats").json() == expected


@pytest.mark.parametrize("sort", ["part", "-part", "tokens", "-tokens", "-entropy_mean", "committed_at", "samples"])
def test_pages_follow_the_order_and_meet_every_shard_once(client: TestClient, sort: str) -> None:
    seen, cursor = [], None
    while True:
        query = {"sort": sort, "limit": "2", **({"cursor": cursor} if cursor else {})}
        page = client.get(SHARDS, params=query).json()
        seen += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert sorted(item["part"] for item in seen) == list(range(5))
    values = [item[sort.removeprefix("-")] for item in seen]
    assert values == sorted(values, reverse=sort.startswith("-"))


def test_filters(client: TestClient) -> None:
    items = client.get(SHARDS).json()["items"]
    middle = sorted(item["tokens"] for item in items)[2]
    at_least = client.get(f"{SHARDS}?min_tokens={middle}").json()["items"]
    at_most = client.get(f"{SHARDS}?max_tokens={middle}").json()["items"]
    assert [i["part"] for i in at_least] == [i["part"] for i in items if i["tokens"] >= middle]
    assert [i["part"] for i in at_most] == [i["part"] for i in items if i["tokens"] <= middle]
    assert [i["part"] for i in client.get(f"{SHARDS}?sample_id=9").json()["items"]] == [2]
    assert client.get(f"{SHARDS}?state=corrupt").json()["items"] == []


@pytest.mark.parametrize(
    "cursor", ["x", "bnVsbA", "WyJwYXJ0IiwxXQ", "WyJwYXJ0IiwibmFtZSIsMV0", "WyItcGFydCIsMSwxXQ", "ü"]
)
def test_foreign_cursor_is_a_bad_request(client: TestClient, cursor: str) -> None:
    answer = client.get(SHARDS, params={"cursor": cursor})
    assert answer.status_code == 400
    assert "start again without a cursor" in answer.json()["detail"]


def test_unknown_sort_key_names_the_known_ones(client: TestClient) -> None:
    answer = client.get(f"{SHARDS}?sort=colour")
    assert answer.status_code == 422
    assert "'colour'" in answer.json()["detail"]
    assert "tokens" in answer.json()["detail"]


@pytest.mark.parametrize("path", [f"{SHARDS}/99", f"{SHARDS}/99/data", f"{SHARDS}/99/stats", "/v1/datasets/no/shards"])
def test_unknown_part_or_dataset_is_not_found(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["instance"] == path


def _shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _remove(path: Path) -> None:
    path.unlink()


def _link_elsewhere(path: Path) -> None:
    copy = path.with_name("elsewhere")
    path.rename(copy)
    path.symlink_to(copy)


@pytest.mark.parametrize("harm", [_shorten, _remove, _link_elsewhere])
def test_shard_with_damaged_data_file_is_shown_as_corrupt(
    client: TestClient, root: Path, harm: Callable[[Path], None]
) -> None:
    harm(root / "train" / "shards" / "part-000001.arrow")
    shard = eventually(lambda: (a := client.get(f"{SHARDS}/1").json())["state"] != "committed" and a)
    assert shard["state"] == "corrupt"
    assert "part-000001.arrow" in shard["problem"]
    answer = client.get(f"{SHARDS}/1/data")
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:arwkv:corrupt-shard")
    assert shard["problem"] in answer.json()["detail"]
    dataset = client.get("/v1/datasets/train").json()
    assert (dataset["shards"], dataset["faulty_shards"]) == (4, 1)
    assert client.get("/v1/datasets/train/stats").json()["samples"] == dataset["samples"] == 16
    assert [i["part"] for i in client.get(f"{SHARDS}?state=corrupt").json()["items"]] == [1]


def test_shard_with_damaged_manifest_is_shown_as_corrupt(client: TestClient, root: Path) -> None:
    path = root / "train" / "shards" / "part-000001.json"
    path.write_bytes(path.read_bytes().replace(b'"rows":4', b'"rows":5'))
    shard = eventually(lambda: (a := client.get(f"{SHARDS}/1").json())["state"] == "corrupt" and a)
    assert "part-000001.json" in shard["problem"]


def test_vanished_shard_is_shown_as_missing_and_comes_back(client: TestClient, root: Path) -> None:
    path = root / "train" / "shards" / "part-000001.json"
    raw = path.read_bytes()
    path.unlink()
    eventually(lambda: client.get(f"{SHARDS}/1").json()["state"] == "missing")
    assert client.get(f"{SHARDS}/1/data").status_code == 404
    assert client.get("/v1/datasets/train").json()["faulty_shards"] == 1
    path.write_bytes(raw)
    eventually(lambda: client.get(f"{SHARDS}/1").json()["state"] == "committed")
    dataset = client.get("/v1/datasets/train").json()
    assert (dataset["shards"], dataset["faulty_shards"], dataset["samples"]) == (5, 0, 20)


def test_manifest_of_another_dataset_is_refused(client: TestClient, root: Path) -> None:
    source = root / "heldout" / "shards"
    for name in ("part-000000.arrow", "part-000000.hidden.arrow", "part-000000.json"):
        (root / "train" / "shards" / name).write_bytes((source / name).read_bytes())
    shard = eventually(lambda: (a := client.get(f"{SHARDS}/0").json())["state"] == "corrupt" and a)
    assert "belongs to dataset" in shard["problem"]


def test_what_is_kept_is_bounded_in_bytes_and_the_longest_unused_goes_first() -> None:
    kept = Kept[bytes](1000, len)
    made: list[int] = []
    for number in (0, 1, 0, 2, 0, 1):
        assert kept.of(number, lambda n=number: made.append(n) or bytes(400)) == bytes(400)
    assert made == [0, 1, 2, 1]
    assert kept.of("large", lambda: bytes(1001)) == bytes(1001)
    kept.of(1, lambda: made.append(9) or b"")
    assert made == [0, 1, 2, 1]


def test_manifests_take_no_more_memory_than_they_may(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parsed form of a manifest is several times its text; the bound is on the parsed form."""
    raw = (root / "train" / "shards" / "part-000000.json").read_bytes()
    parsed = Kept(2 * MEMORY_PER_BYTE * len(raw), manifests._PARSED._size_of)
    monkeypatch.setattr(manifests, "_PARSED", parsed)
    for number in range(5):
        name = f"part-{number:06d}.json"
        manifests.parse_manifest((root / "train" / "shards" / name).read_bytes())
    assert 1 <= len(parsed._kept) <= 2
    write_example_dataset(tmp_path / "layers", info=example_dataset_info(layers=range(24)), parts=[0])
    raw = (tmp_path / "layers" / "shards" / "part-000000.json").read_bytes()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    many = [ShardManifest.from_bytes(raw, "part 0") for _ in range(20)]
    taken = (tracemalloc.get_traced_memory()[0] - before) / len(many)
    tracemalloc.stop()
    assert taken + len(raw) <= MEMORY_PER_BYTE * len(raw) * 1.2
