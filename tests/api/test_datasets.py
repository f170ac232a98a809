"""Datasets over HTTP: what is listed, how it is found, and how it comes and goes."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api_eventually import eventually
from arwkv_api.config import Settings
from arwkv_api.http import service
from arwkv_store import DatasetInfo, open_dataset
from arwkv_store.format.seal import self_hash
from store_examples import example_dataset_info, write_example_dataset, write_tokens


def test_list_shows_each_folder_under_the_root_with_its_totals(client: TestClient, root: Path) -> None:
    items = client.get("/v1/datasets").json()["items"]
    assert [item["name"] for item in items] == ["heldout", "train"]
    train = open_dataset(root / "train")
    assert items[1]["state"] == "ready"
    assert items[1]["shards"] == items[1]["parts"] == len(train.shards)
    assert items[1]["samples"] == len(train)
    assert items[1]["tokens"] == sum(manifest.tokens for manifest in train.shards)
    assert items[1]["size_bytes"] == sum(manifest.size_bytes for manifest in train.shards)
    assert items[1]["teacher"] == train.info.teacher.model


def test_root_that_is_itself_a_dataset_is_served_under_its_folders_name(
    settings: Any, root: Path, open_client: Callable[[Any], TestClient]
) -> None:

    client = open_client(replace(settings, roots=(str(root / "train"),)))
    assert [item["name"] for item in client.get("/v1/datasets").json()["items"]] == ["train"]


def test_dataset_carries_its_identity(client: TestClient, root: Path) -> None:
    answer = client.get("/v1/datasets/train").json()
    assert DatasetInfo.model_validate(answer["info"]) == open_dataset(root / "train").info


def test_manifest_is_the_raw_identity(client: TestClient, root: Path) -> None:
    assert client.get("/v1/datasets/train/manifest").content == (root / "train" / "dataset.json").read_bytes()


def test_statistics_are_the_stores_own(client: TestClient, root: Path) -> None:
    answer = client.get("/v1/datasets/train/stats").json()
    expected = open_dataset(root / "train").stats().model_dump(mode="json")
    assert answer.keys() == expected.keys()
    for name, value in expected.items():
        assert answer[name] == (pytest.approx(value) if isinstance(value, float | dict) else value), name


def test_dataset_that_grows_has_as_many_parts_as_are_committed(client: TestClient, root: Path) -> None:
    for shards in (1, 2):
        write_tokens(root / "tokens", parts=range(shards))
        eventually(lambda shards=shards: is_ready(client, "tokens", shards))
        answer, stats = client.get("/v1/datasets/tokens").json(), client.get("/v1/datasets/tokens/stats").json()
        assert (answer["parts"], stats["parts"], stats["positions"]) == (shards, shards, 0)
        assert stats["bytes_by_column"].keys() == {"rows"}
    preview = client.get("/v1/datasets/tokens/samples/3").json()
    assert preview["tokens"][1]["alternatives"] == []


def is_ready(client: TestClient, name: str, shards: int) -> bool:
    """Whether the dataset is served with so many shards."""
    dataset = client.get(f"/v1/datasets/{name}").json()
    return (dataset.get("state"), dataset.get("shards")) == ("ready", shards)


def test_empty_dataset_has_empty_statistics(client: TestClient, root: Path) -> None:
    write_example_dataset(root / "fresh", parts=[])
    eventually(lambda: client.get("/v1/datasets/fresh/stats").status_code == 200)
    stats = client.get("/v1/datasets/fresh/stats").json()
    assert (stats["samples"], stats["shards"], stats["parts"]) == (0, 0, 3)


def test_newly_committed_shard_appears_by_itself(client: TestClient, root: Path) -> None:
    info = example_dataset_info(samples=12)
    write_example_dataset(root / "growing", info=info, parts=[1])
    eventually(lambda: client.get("/v1/datasets/growing/shards/1").status_code == 200)
    eventually(lambda: client.get("/v1/datasets/growing/shards/0").status_code == 404)  # 503 while it is indexed
    write_example_dataset(root / "growing", info=info, parts=[0])
    eventually(lambda: client.get("/v1/datasets/growing/shards/0").status_code == 200)
    assert client.get("/v1/datasets/growing").json()["shards"] == 2


def test_register_indexes_a_folder_at_once(client: TestClient, root: Path) -> None:
    write_example_dataset(root / "new")
    answer = client.post("/v1/datasets", json={"name": "new"})
    assert answer.status_code == 201
    assert str(answer.url.join(answer.headers["location"])) == "http://testserver/v1/datasets/new"
    assert answer.json()["shards"] == 3


def test_withdrawn_dataset_stays_away_until_registered_again(client: TestClient, root: Path) -> None:
    assert client.delete("/v1/datasets/heldout").status_code == 204
    assert client.get("/v1/datasets/heldout").status_code == 404
    assert client.delete("/v1/datasets/heldout").status_code == 404
    write_example_dataset(root / "later")
    eventually(lambda: client.get("/v1/datasets/later").status_code == 200)  # at least one scan has passed
    assert client.get("/v1/datasets/heldout").status_code == 404
    assert (root / "heldout" / "dataset.json").exists()
    assert client.post("/v1/datasets", json={"name": "heldout"}).json()["shards"] == 3
    assert client.get("/v1/datasets/heldout/stats").json()["shards"] == 3


def test_reindex_reads_every_manifest_again(client: TestClient) -> None:
    before = client.get("/v1/datasets/train").json()
    answer = client.post("/v1/datasets/train/reindex")
    assert (answer.status_code, answer.json()["state"], answer.json()["shards"]) == (202, "indexing", 0)
    after = eventually(lambda: (a := client.get("/v1/datasets/train").json())["state"] == "ready" and a)
    assert after["revision"] > before["revision"]
    assert {**after, "revision": 0, "updated_at": 0} == {**before, "revision": 0, "updated_at": 0}


def test_reindexing_that_is_under_way_is_not_begun_again(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "scan_root", lambda *arguments, **keywords: None)
    first = client.post("/v1/datasets/train/reindex").json()
    assert first["state"] == "indexing"
    assert client.post("/v1/datasets/train/reindex").json() == first


def test_missing_folder_is_shown_as_missing(client: TestClient, root: Path) -> None:
    shutil.rmtree(root / "heldout")
    answer = eventually(lambda: (a := client.get("/v1/datasets/heldout").json())["state"] != "ready" and a)
    assert answer["state"] == "missing"
    assert "gone" in answer["problem"]


def test_damaged_identity_is_shown_as_unreadable_and_recovers(client: TestClient, root: Path) -> None:
    path = root / "heldout" / "dataset.json"
    good = path.read_bytes()
    path.write_bytes(good.replace(b"example/teacher", b"example/teapher"))
    answer = eventually(lambda: (a := client.get("/v1/datasets/heldout").json())["state"] != "ready" and a)
    assert answer["state"] == "unreadable"
    assert "heldout/dataset.json" in answer["problem"]
    path.write_bytes(good)
    eventually(lambda: client.get("/v1/datasets/heldout").json()["state"] == "ready")
    assert client.get("/v1/datasets/heldout").json()["problem"] is None


def test_text_with_a_nul_is_indexed_and_found(client: TestClient, root: Path) -> None:
    info = example_dataset_info()
    named = info.corpus.model_copy(update={"description": "before\0after"})
    write_example_dataset(root / "odd", info=info.model_copy(update={"corpus": named}))
    eventually(lambda: client.get("/v1/datasets/odd").status_code == 200)
    assert [item["name"] for item in client.get("/v1/datasets?search=after").json()["items"]] == ["odd"]


def test_folder_replaced_by_another_dataset_forgets_the_old_shards(client: TestClient, root: Path) -> None:
    shutil.rmtree(root / "heldout")
    write_example_dataset(root / "heldout", info=example_dataset_info(samples=4, top_k=3))
    eventually(lambda: is_ready(client, "heldout", 1))
    assert [item["part"] for item in client.get("/v1/datasets/heldout/shards").json()["items"]] == [0]
    assert client.get("/v1/datasets/heldout/stats").json()["samples"] == 4


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("sort=-name", ["train", "heldout"]),
        ("sort=samples", ["heldout", "train"]),
        ("sort=-tokens", ["train", "heldout"]),
        ("contains=RAI", ["train"]),
        ("contains=%25", []),
        ("search=TRAIN", ["train"]),
        ("search=EXAMPLE/teacher+rain", ["train"]),
        ("search=example+nothing", []),
        ("search=%25", []),
        ("teacher=example/teacher", ["heldout", "train"]),
        ("teacher=example", []),
        ("state=missing", []),
        ("state=ready", ["heldout", "train"]),
    ],
)
def test_list_filters_and_sorts(client: TestClient, query: str, names: list[str]) -> None:
    assert [item["name"] for item in client.get(f"/v1/datasets?{query}").json()["items"]] == names


@pytest.mark.parametrize("part", ["\u00c9t\u00e9", "\u00e9t\u00e9"])
def test_part_of_a_name_beyond_ascii_is_found(
    client: TestClient, root: Path, part: str, request: pytest.FixtureRequest
) -> None:
    if part.islower() and "postgresql" in request.node.name:
        pytest.skip("the tests' server has the C locale, which knows ASCII's cases alone")
    write_example_dataset(root / "\u00c9t\u00e9")
    answer = client.post("/v1/datasets", json={"name": "\u00c9t\u00e9"})
    assert (answer.status_code, answer.headers["location"]) == (201, "datasets/%C3%89t%C3%A9")
    assert [i["name"] for i in client.get("/v1/datasets", params={"contains": part}).json()["items"]] == [
        "\u00c9t\u00e9"
    ]


@pytest.mark.parametrize("sort", ["name", "-name", "teacher", "-samples", "tokens", "created_at", "-updated_at"])
def test_pages_of_one_meet_every_dataset_once(client: TestClient, sort: str) -> None:
    names, cursor = [], ""
    while cursor is not None:
        page = client.get(f"/v1/datasets?limit=1&sort={sort}{cursor}").json()
        names += [item["name"] for item in page["items"]]
        cursor = page["next_cursor"] and f"&cursor={page['next_cursor']}"
    assert sorted(names) == ["heldout", "train"]


def test_timeline_ends_at_the_totals(client: TestClient) -> None:
    points = client.get("/v1/datasets/train/timeline?points=2").json()["points"]
    dataset = client.get("/v1/datasets/train").json()
    assert 1 <= len(points) <= 2
    assert points[-1]["tokens"] == dataset["tokens"]
    assert points[-1]["shards"] == dataset["shards"]


def test_corpus_report_is_answered_where_there_is_one(client: TestClient, root: Path, tmp_path: Path) -> None:
    path, place = root / "train" / "corpus.json", "/v1/datasets/train/corpus"
    assert client.get(place).json() == {"report": None}
    path.write_text('{"documents": 3}')
    assert client.get(place).json() == {"report": {"documents": 3}}
    for bad in ("[1]", "not json", "[" * 100_000, '{"a": "\\ud800"}', '{"a": NaN}'):
        path.write_text(bad)
        assert client.get(place).json() == {"report": None}
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    (tmp_path / "elsewhere.json").write_text('{"documents": 3}')
    assert client.get(place).json() == {"report": None}


def test_files_are_removed_only_with_a_key_and_the_word_for_what_is_there(
    settings: Settings, open_client: Callable[[Settings], TestClient], root: Path
) -> None:
    client = open_client(replace(settings, api_key="secret"))
    bearer = {"Authorization": "Bearer secret"}
    plan = client.get("/v1/datasets/train/removal", headers=bearer).json()
    assert (plan["parts"], plan["files"]) == (5, 16)
    train = "/v1/datasets/train?files=true"
    for word in ("", "&confirm=wrong"):
        refused = client.delete(train + word, headers=bearer)
        assert (refused.status_code, "5 parts" in refused.json()["detail"]) == (412, True)
    (root / "train" / "shards" / "part-000004.json").unlink()
    assert client.delete(f"{train}&confirm={plan['confirm']}", headers=bearer).status_code == 412
    assert client.delete(f"{train}&confirm={plan['confirm']}").status_code == 401
    word = client.get("/v1/datasets/train/removal", headers=bearer).json()["confirm"]
    assert client.delete(f"{train}&confirm={word}", headers=bearer).status_code == 204
    assert not (root / "train").exists()
    eventually(lambda: client.get("/v1/datasets/train", headers=bearer).status_code == 404)
    assert client.get("/v1/datasets/heldout", headers=bearer).status_code == 200


def test_files_are_not_removed_where_everyone_may_write(client: TestClient, root: Path) -> None:
    word = client.get("/v1/datasets/train/removal").json()["confirm"]
    refused = client.delete(f"/v1/datasets/train?files=true&confirm={word}")
    assert (refused.status_code, "write key" in refused.json()["detail"]) == (403, True)
    assert (root / "train" / "dataset.json").exists()


def test_lineage_names_copies_and_the_runs_that_trained_on_it(client: TestClient, root: Path) -> None:
    shutil.copytree(root / "train", root / "train-again")
    run = root / "students" / "one"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    used = self_hash((root / "train" / "dataset.json").read_bytes())
    (run / "run.json").write_text(json.dumps({"preset": "arwkv", "shards_0_dataset": used}))
    expected = {"corpus": "made up", "teacher": "example/teacher", "copies": ["train-again"], "runs": ["students-one"]}
    eventually(lambda: client.get("/v1/datasets/train/lineage").json() == expected)
    assert client.get("/v1/datasets/heldout/lineage").json()["runs"] == []
    detail = client.get("/v1/runs/students-one").json()
    assert (detail["datasets"], detail["settings"]["preset"]) == (["train", "train-again"], "arwkv")
