"""Notes over HTTP: read by all who read, written with a key and the version that was seen, found by word and tag."""

import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api_eventually import eventually
from arwkv_api.access.keys import add_key
from arwkv_api.config import Settings
from arwkv_store.commands.noting import noted

Open = Callable[[Settings], TestClient]
KEY = {"Authorization": "Bearer secret"}
TRAIN, RUN = "/v1/datasets/train/notes", "/v1/runs/students-one/notes"


@pytest.fixture
def run(root: Path) -> Path:
    """A run below the root."""
    folder = root / "students" / "one"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"stage": "align", "step": 1}\n')
    return folder


@pytest.fixture
def client(settings: Settings, open_client: Open, run: Path) -> TestClient:
    """The application with the key "secret", by which every request is made."""
    client = open_client(replace(settings, api_key="secret"))
    client.headers.update(KEY)
    return client


def _put(client: TestClient, place: str, etag: str | None, text: str = "", tags: tuple[str, ...] = ()) -> Any:
    headers = {} if etag is None else {"If-Match": etag}
    return client.put(place, json={"text": text, "tags": list(tags)}, headers=headers)


def _names(client: TestClient, kind: str, **query: str) -> list[str]:
    return [item["name"] for item in client.get(f"/v1/{kind}", params=query).json()["items"]]


@pytest.mark.parametrize("place", [TRAIN, RUN])
def test_second_of_two_writers_is_told_and_loses_nothing(client: TestClient, place: str) -> None:
    seen = client.get(place)
    assert (seen.json()["text"], seen.json()["changed_at_s"], seen.headers["etag"]) == ("", None, '"none"')
    first = _put(client, place, seen.headers["etag"], "first", ("b", "a"))
    assert (first.status_code, first.json()["tags"]) == (200, ["a", "b"])
    refused = _put(client, place, seen.headers["etag"], "second")
    assert (refused.status_code, refused.headers["content-type"]) == (412, "application/problem+json")
    assert client.get(place).json() == first.json()
    assert client.get(place).headers["etag"] == first.headers["etag"]
    assert _put(client, place, first.headers["etag"], "second").status_code == 200
    assert _put(client, place, '"x", W/"none"', "third").status_code == 412
    assert _put(client, place, None, "third").status_code == 428
    assert client.get(place).json()["text"] == "second"
    assert _put(client, place, "*", "fourth").json()["text"] == "fourth"


def test_of_many_writers_at_once_each_word_is_kept(client: TestClient) -> None:
    """Each reads, adds its word and writes, again until it is the first."""

    def add(word: str) -> None:
        while True:
            seen = client.get(TRAIN)
            if _put(client, TRAIN, seen.headers["etag"], f"{seen.json()['text']} {word}").status_code == 200:
                return

    threads = [threading.Thread(target=add, args=(f"word{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(client.get(TRAIN).json()["text"].split()) == [f"word{number}" for number in range(6)]


def test_notes_are_written_only_with_a_key_that_may(
    settings: Settings, open_client: Open, run: Path, root: Path, tmp_path: Path
) -> None:
    without = open_client(settings)
    for place in (TRAIN, RUN):
        assert _put(without, place, "*", "x").status_code == 403
    keys = tmp_path / "keys.json"
    secrets = {
        name: add_key(keys, name, frozenset(scopes), datasets)[1]  # type: ignore[arg-type]  # literals
        for name, scopes, datasets in (("reader", ["read"], ()), ("of-one", ["read", "write"], ("train",)))
    }
    client = open_client(replace(settings, keys=keys))
    for name, allowed in (("reader", []), ("of-one", [TRAIN])):
        client.headers["Authorization"] = f"Bearer {secrets[name]}"
        for place in (TRAIN, RUN, "/v1/datasets/heldout/notes"):
            assert _put(client, place, "*", "x").status_code == (200 if place in allowed else 403), (name, place)
    assert client.get(RUN).status_code == 403
    client.headers.pop("Authorization")
    assert (client.get(TRAIN).status_code, _put(client, TRAIN, "*").status_code) == (401, 401)
    assert not (root / "heldout" / "notes.json").exists()
    assert not (run / "notes.json").exists()


def test_words_and_tags_are_found(client: TestClient, root: Path) -> None:
    _put(client, TRAIN, '"none"', "Looks RIGHT, 100 % \u00c4rger", ("round-3", "a_b"))
    assert client.get("/v1/datasets/train").json()["tags"] == ["a_b", "round-3"]
    for search in ("right", "%", "\u00e4RGER", "round-3 example/teacher"):
        assert _names(client, "datasets", search=search) == ["train"], search
    assert _names(client, "datasets", tag="round-3") == ["train"]
    for tag in ("round", "axb", "a"):
        assert _names(client, "datasets", tag=tag) == [], tag
    assert client.get("/v1/datasets?tag=A").status_code == 422
    _put(client, RUN, '"none"', "odd loss", ("round-3",))
    for query in ({"search": "ODD"}, {"tag": "round-3"}, {"search": "round-3 one"}):
        assert _names(client, "runs", **query) == ["students-one"], query
    assert client.get("/v1/runs").json()["items"][0]["tags"] == ["round-3"]
    assert _names(client, "runs", tag="a") == []
    noted(str(root / "train"), "another tool wrote this", (), ("round-3",))
    eventually(lambda: _names(client, "datasets", search="another tool") == ["train"])
    assert _names(client, "datasets", tag="round-3") == []
    (root / "train" / "notes.json").unlink()
    eventually(lambda: client.get("/v1/datasets/train").json()["tags"] == [])


def test_index_is_rebuilt_with_the_notes(settings: Settings, open_client: Open, root: Path) -> None:
    noted(str(root / "train"), "kept", ("a",), ())
    client = open_client(replace(settings, scan_interval_s=3600.0))
    assert _names(client, "datasets", tag="a") == ["train"]
    assert client.get("/v1/datasets/train").json()["shards"] == 5


def test_change_is_an_event_and_takes_no_verification_back(client: TestClient, root: Path) -> None:
    def state(kind: str) -> str:
        (found,) = re.findall(rf"event: {kind}\ndata: (.*)", client.get("/v1/events?follow=false").text)
        return found

    before = client.get("/v1/datasets/train").json()
    datasets, runs = state("datasets"), state("runs")
    _put(client, TRAIN, '"none"', "x")
    _put(client, RUN, '"none"', "x")
    after = client.get("/v1/datasets/train").json()
    assert after["revision"] > before["revision"]
    assert (after["updated_at"], after["shards"]) == (before["updated_at"], before["shards"])
    eventually(lambda: state("datasets") != datasets and state("runs") != runs)


HOSTILE = [
    ("a\0b", ()), ("\x1b[2J", ()), ("\x9b", ()), ("x" * 8001, ()), ("", ("A",)), ("", ("<script>",)), ("", ("a b",)),
    ("", ("-",)), ("", ("a\n",)), ("", tuple(f"t{n}" for n in range(33))), ("", ("\u202e",)),
]  # fmt: skip


@pytest.mark.parametrize(("text", "tags"), HOSTILE, ids=range(len(HOSTILE)))
def test_words_that_notes_cannot_have_are_refused(client: TestClient, text: str, tags: tuple[str, ...]) -> None:
    for place in (TRAIN, RUN):
        assert _put(client, place, "*", text, tags).status_code == 422


@pytest.mark.parametrize(
    "text", ["<img src=x onerror=alert(1)>", "\u202e\u2066 \u05e9\u05dc\u05d5\u05dd", "'; --", "\U0001f642" * 8000]
)
def test_any_other_text_comes_back_as_it_was(client: TestClient, text: str) -> None:
    for place in (TRAIN, RUN):
        assert _put(client, place, "*", text).json()["text"] == client.get(place).json()["text"] == text


def test_bodies_that_are_no_words_are_refused(client: TestClient) -> None:
    for body in (
        "[]",
        "{",
        '{"text": 1, "tags": []}',
        '{"text": "\\ud800", "tags": []}',
        '{"text": "", "tags": [], "x": 1}',
    ):
        assert client.put(TRAIN, content=body, headers={"If-Match": "*"}).status_code == 422, body


@pytest.mark.parametrize("raw", ["not json", '{"format_version": 2, "text": "later"}', "[" * 60_000, " " * 70_000])
def test_file_that_is_no_notes_hides_no_dataset_and_is_not_replaced(
    client: TestClient, root: Path, run: Path, raw: str
) -> None:
    for folder, place in ((root / "train", TRAIN), (run, RUN)):
        (folder / "notes.json").write_text(raw)
        assert (client.get(place).status_code, _put(client, place, "*", "x").status_code) == (409, 409)
        assert (folder / "notes.json").read_text() == raw
    eventually(lambda: client.get("/v1/datasets/train").json()["state"] == "ready")
    assert _names(client, "runs") == ["students-one"]


def test_nothing_outside_is_read_or_replaced(client: TestClient, root: Path, run: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"text": "secret"}')
    for folder, place in ((root / "train", TRAIN), (run, RUN)):
        (folder / "notes.json").symlink_to(secret)
        assert "secret" not in client.get(place).text
        assert _put(client, place, "*", "x").status_code == 409
    assert secret.read_text() == '{"text": "secret"}'
    for place in ("/v1/datasets/..%2fsecret/notes", "/v1/runs/..%2f..%2fsecret/notes", "/v1/datasets/absent/notes"):
        assert _put(client, place, "*", "x").status_code == 404


def test_documented_request_works(client: TestClient) -> None:
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    (block,) = re.findall(r"```http\n(.*?)```", text, re.S)
    head, body = block.split("\n\n", 1)
    request, *lines = head.splitlines()
    method, path, _ = request.split()
    headers = {**dict(line.split(": ", 1) for line in lines), **KEY}
    answer = client.request(method, path, content=body, headers=headers)
    assert (answer.status_code, answer.json()["text"]) == (200, json.loads(body)["text"])
