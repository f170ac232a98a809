"""Who is let in, what a hostile caller can reach, and what a browser is told."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from api_eventually import eventually
from api_serving import serving
from arwkv_api.access.keys import add_key, find_key, load_keys
from arwkv_api.config import Settings
from arwkv_store import UsageError
from store_examples import write_example_dataset

Open = Callable[[Settings], TestClient]
READ, WRITE = frozenset({"read"}), frozenset({"read", "write"})


def _bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """Secrets of a reader and a writer, whose hashes are in keys.json."""
    path = tmp_path / "keys.json"
    return {"reader": add_key(path, "reader", READ)[1], "writer": add_key(path, "writer", frozenset({"write"}))[1]}


def test_without_keys_everything_is_open(client: TestClient) -> None:
    assert client.get("/v1/datasets").status_code == 200


def test_keys_open_what_their_scopes_say(
    settings: Settings, open_client: Open, keys: dict[str, str], tmp_path: Path
) -> None:
    client = open_client(replace(settings, keys=tmp_path / "keys.json"))
    reader, writer = _bearer(keys["reader"]), _bearer(keys["writer"])
    assert client.get("/v1/datasets").status_code == 401
    assert client.get("/v1/datasets", headers=_bearer("wrong")).status_code == 401
    assert client.get("/v1/datasets", headers={"Authorization": "Basic eDp5"}).status_code == 401
    assert client.get("/v1/datasets", headers=reader).status_code == 200
    assert client.get("/v1/datasets", headers=writer).status_code == 403
    assert client.delete("/v1/datasets/train", headers=reader).status_code == 403
    assert client.delete("/v1/datasets/train", headers=writer).status_code == 204


def test_public_reading_leaves_writing_to_those_with_a_key(settings: Settings, open_client: Open) -> None:
    client = open_client(replace(settings, api_key="secret", public_read=True))
    assert client.get("/v1/datasets").status_code == 200
    assert client.get("/v1/datasets", headers=_bearer("wrong")).status_code == 401
    assert client.delete("/v1/datasets/train").status_code == 401
    assert client.delete("/v1/datasets/train", headers=_bearer("secret")).status_code == 204


def test_every_operation_but_health_needs_a_key(settings: Settings, open_client: Open) -> None:
    client = open_client(replace(settings, api_key="secret"))
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for method in operations:
            url = path.format(name="train", part=0, sample_id=0)
            expected = 200 if path in ("/health", "/ready") else 401
            assert client.request(method, url, json={"name": "train"}).status_code == expected, (method, path)


def test_refusal_says_how_to_send_a_key(settings: Settings, open_client: Open) -> None:
    answer = open_client(replace(settings, api_key="secret")).get("/v1/datasets")
    assert answer.headers["www-authenticate"] == 'Bearer realm="arwkv"'
    assert "Authorization: Bearer" in answer.json()["detail"]


def test_key_added_or_taken_out_counts_without_a_restart(
    settings: Settings, open_client: Open, keys: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    client = open_client(replace(settings, keys=path))
    later = _bearer(add_key(path, "later", READ)[1])
    eventually(lambda: client.get("/v1/datasets", headers=later).status_code == 200)
    path.write_text("[]")
    eventually(lambda: client.get("/v1/datasets", headers=later).status_code == 401)


def test_deleted_key_file_revokes_its_keys(
    settings: Settings, open_client: Open, keys: dict[str, str], tmp_path: Path
) -> None:
    client = open_client(replace(settings, keys=tmp_path / "keys.json"))
    assert client.get("/v1/datasets", headers=_bearer(keys["reader"])).status_code == 200
    (tmp_path / "keys.json").unlink()
    eventually(lambda: client.get("/v1/datasets", headers=_bearer(keys["reader"])).status_code == 401)
    assert client.get("/v1/datasets").status_code == 401


def test_key_on_the_command_line_is_said_to_be_visible(root: Path, tmp_path: Path) -> None:
    for flags, environment, said in ((["--api-key", "sesame"], {}, True), ([], {"ARWKV_API_KEY": "sesame"}, False)):
        with serving("--root", str(root), *flags, cache=tmp_path, environment=environment):
            log = (tmp_path / "api.log").read_text()
        assert ("can read it in the list of processes; set ARWKV_API_KEY instead" in log) == said
        assert "sesame" not in log


def test_key_file_that_breaks_leaves_the_keys_as_they_were(
    settings: Settings, open_client: Open, keys: dict[str, str], tmp_path: Path
) -> None:
    client = open_client(replace(settings, keys=tmp_path / "keys.json"))
    (tmp_path / "keys.json").write_text("not json")
    for _ in range(3):
        assert client.get("/v1/datasets", headers=_bearer(keys["reader"])).status_code == 200


def test_secrets_are_not_stored_and_the_file_is_private(keys: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    assert keys["reader"] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = find_key(load_keys(path), keys["reader"])
    assert found is not None
    assert (found.name, found.scopes) == ("reader", READ)
    assert find_key(load_keys(path), "reader") is None


def test_second_key_of_a_name_is_refused(keys: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has a key of that name"):
        add_key(tmp_path / "keys.json", "reader", WRITE)


def test_key_command_prints_the_secret_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys.json"
    command = [
        sys.executable,
        "-m",
        "arwkv_api",
        "key",
        "--keys",
        str(path),
        "--name",
        "ci",
        "--scope",
        "read",
        "write",
    ]
    run = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60, check=True)
    document = json.loads(run.stdout)
    found = find_key(load_keys(path), document["key"])
    assert found is not None
    assert (found.name, found.scopes) == ("ci", WRITE)


def test_writes_are_in_the_audit_log(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="arwkv_api.audit"):
        client.delete("/v1/datasets/train")
        answer = client.post("/v1/datasets", json={"name": "train"})
    lines = [record for record in caplog.records if record.name == "arwkv_api.audit"]
    assert [record.getMessage() for record in lines] == [
        "DELETE /v1/datasets/train of train by anyone: 204",
        "POST /v1/datasets of train by anyone: 201",
    ]
    fields = vars(lines[1])["fields"]
    assert (fields["dataset"], fields["status"]) == ("train", 201)
    assert fields["request_id"] == answer.headers["x-request-id"]


def test_refused_writes_are_in_the_audit_log(
    settings: Settings,
    open_client: Open,
    keys: dict[str, str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = open_client(replace(settings, keys=tmp_path / "keys.json"))
    with caplog.at_level("INFO", logger="arwkv_api.audit"):
        client.delete("/v1/datasets/train")
        client.delete("/v1/datasets/train", headers=_bearer(keys["reader"]))
    said = [record.getMessage() for record in caplog.records if record.name == "arwkv_api.audit"]
    assert said == [
        "DELETE /v1/datasets/train of train by anyone: 401",
        "DELETE /v1/datasets/train of train by reader: 403",
    ]


@pytest.mark.parametrize("path", ["/", "/docs", "/v1/datasets", "/nothing", "/v1/datasets/train/shards/0/data"])
def test_every_answer_has_the_security_headers(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in headers
    assert headers["x-request-id"]


def test_callers_request_id_is_kept_only_if_it_is_a_plain_word(client: TestClient) -> None:
    assert client.get("/health", headers={"X-Request-ID": "run-7.a"}).headers["x-request-id"] == "run-7.a"
    for bad in ("a b", "x" * 65, "", "é".encode("latin-1")):
        assert client.get("/health", headers={"X-Request-ID": bad}).headers["x-request-id"] != bad


SECRET = b"what must never leave"


@pytest.fixture
def outside(tmp_path: Path, root: Path) -> Path:
    """A secret beside the root, with links to it from within."""
    (tmp_path / "secret").write_bytes(SECRET)
    (root / "train" / "shards" / "part-000099.arrow").symlink_to(tmp_path / "secret")
    (root / "secret").symlink_to(tmp_path / "secret")
    return tmp_path / "secret"


TRAVERSALS = ["../secret", "..%2fsecret", "%2e%2e/secret", "%2e%2e%2fsecret", "train/../../secret", "..\\secret",
              "%00", "train%00", "train/shards/../../../secret", "//secret", "%252e%252e%252fsecret"]  # fmt: skip


@pytest.mark.parametrize("name", TRAVERSALS)
@pytest.mark.parametrize("prefix", ["/v1/datasets/", "/page/", "/v1/runs/"])
def test_no_path_leads_out_of_the_root(client: TestClient, outside: Path, prefix: str, name: str) -> None:
    for tail in ("", "/manifest", "/shards/0/data", "/metrics"):
        answer = client.get(prefix + name + tail)
        assert answer.status_code in (307, 400, 404, 405, 422), (name, tail)
        assert SECRET not in answer.content


def test_dataset_behind_a_symbolic_link_is_not_served(client: TestClient, root: Path, tmp_path: Path) -> None:
    write_example_dataset(tmp_path / "elsewhere")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    write_example_dataset(root / "marker")
    eventually(lambda: client.get("/v1/datasets/marker").status_code == 200)
    assert client.get("/v1/datasets/linked").status_code == 404


def test_shards_folder_that_is_a_link_is_not_followed(client: TestClient, root: Path, tmp_path: Path) -> None:
    (root / "train" / "shards").rename(tmp_path / "moved")
    (root / "train" / "shards").symlink_to(tmp_path / "moved")
    eventually(lambda: client.get("/v1/datasets/train/shards/0").json()["state"] != "committed")
    assert client.get("/v1/datasets/train/shards/0/data").status_code == 404


def test_pipe_in_place_of_a_manifest_does_not_hang_the_scan(client: TestClient, root: Path) -> None:
    path = root / "train" / "shards" / "part-000000.json"
    path.unlink()
    os.mkfifo(path)
    shard = eventually(lambda: (a := client.get("/v1/datasets/train/shards/0").json())["state"] == "corrupt" and a)
    assert "not a regular file" in shard["problem"]


def test_body_over_the_limit_is_refused(settings: Settings, open_client: Open) -> None:
    client = open_client(replace(settings, request_limit_bytes=1000))
    whole = client.post("/v1/datasets", content=b"x" * 1001)
    piecewise = client.post("/v1/datasets", content=(b"x" * 100 for _ in range(11)))
    assert [whole.status_code, piecewise.status_code] == [413, 413]
    assert "--request-limit-bytes" in whole.json()["detail"]


def test_address_over_its_rate_is_told_to_slow_down(settings: Settings, open_client: Open) -> None:
    client = open_client(replace(settings, requests_per_s=0.5))
    statuses = [client.get("/health").status_code for _ in range(8)]
    assert statuses == [200] * 5 + [429] * 3
    assert client.get("/health").headers["retry-after"] == "1"


def _indexed(client: TestClient) -> list[object]:
    """Everything that the index says of datasets and shards, but when it learned it."""
    changing = ("updated_at", "revision", "verified_at", "verified_shards")
    paths = ["/v1/datasets", "/v1/datasets/train/shards?include=manifest", "/v1/datasets/heldout/shards"]
    items = [item for path in paths for item in client.get(path).json()["items"]]
    return [{name: value for name, value in item.items() if name not in changing} for item in items]


@hypothesis_settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(max_size=300) | st.integers().map(str))
@example(text="\0")
@example(text="'; DROP TABLE shards; --")
@example(text=str(2**64))
@example(text="../../etc/passwd")
def test_any_text_in_any_parameter_leaves_the_index_as_it_was(client: TestClient, text: str) -> None:
    safe = text.encode("utf-8", "replace").decode()
    before = _indexed(client)
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            for parameter in operation.get("parameters", []):
                name, place = parameter["name"], parameter["in"]
                given = {
                    "name": "train",
                    "part": 0,
                    "sample_id": 0,
                    **({name: quote(safe, safe="")} if place == "path" else {}),
                }
                if method == "delete" and given["name"] == "train":
                    continue
                answer = client.request(
                    method,
                    path.format(**given),
                    params={name: safe} if place == "query" else {},
                    headers={name: safe.encode()} if place == "header" else {},
                )
                assert answer.status_code < 500, (method, path, name, answer.text)
    assert client.post("/v1/datasets", json={"name": safe}).status_code in (201, 404, 422)
    assert _indexed(client) == before


def test_key_for_some_datasets_reaches_no_other_and_no_run(
    settings: Settings, open_client: Open, tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    exact, prefix = (add_key(path, name, WRITE, (name,))[1] for name in ("train", "held*"))
    client = open_client(replace(settings, keys=path))
    for secret, mine, other in ((exact, "train", "heldout"), (prefix, "heldout", "train")):
        bearer = _bearer(secret)
        assert [item["name"] for item in client.get("/v1/datasets", headers=bearer).json()["items"]] == [mine]
        assert client.get(f"/v1/datasets/{mine}/shards/0/data", headers=bearer).status_code == 200
        for inner in ("", "/stats", "/shards", "/shards/0/data", "/samples/0", "/manifest"):
            assert client.get(f"/v1/datasets/{other}{inner}", headers=bearer).status_code == 403, inner
        assert client.post("/v1/datasets", json={"name": other}, headers=bearer).status_code == 403
        assert client.delete(f"/v1/datasets/{other}", headers=bearer).status_code == 403
        assert client.get("/v1/runs", headers=bearer).status_code == 403
        assert client.get("/metrics", headers=bearer).status_code == 403
        assert client.get("/v1/captures", headers=bearer).json()["items"] == []
        events = client.get("/v1/events?follow=false", headers=bearer).text
        assert mine in events
        assert other not in events


def test_every_operation_is_limited_by_a_key_for_some_datasets(
    settings: Settings, open_client: Open, tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    bearer = _bearer(add_key(path, "elsewhere", WRITE, ("elsewhere",))[1])
    client = open_client(replace(settings, keys=path))
    for operation, methods in client.get("/openapi.json").json()["paths"].items():
        for method in methods:
            url = operation.format(name="train", part=0, sample_id=0) + "?follow=false" * (operation == "/v1/events")
            answer = client.request(method, url, json={"name": "train"}, headers=bearer)
            assert answer.status_code == 403 or "train" not in answer.text, (method, operation)


def test_key_expires(settings: Settings, open_client: Open, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key, secret = add_key(path, "guest", READ, (), days=1.0)
    assert key.expires_at is not None
    client = open_client(replace(settings, keys=path))
    assert client.get("/v1/datasets", headers=_bearer(secret)).status_code == 200
    document = json.loads(path.read_text())
    document[0]["expires_at"] = "2020-01-01T00:00:00+00:00"
    path.write_text(json.dumps(document))
    eventually(lambda: client.get("/v1/datasets", headers=_bearer(secret)).status_code == 401)
    assert "expired at 2020-01-01" in client.get("/v1/datasets", headers=_bearer(secret)).json()["detail"]


@pytest.mark.parametrize(
    "limit", [{"expires_at": "tomorrow"}, {"expires_at": "2030-01-01"}, {"datasets": "train"}, {"datasets": [""]}]
)
def test_limit_of_a_key_that_cannot_be_read_is_refused(tmp_path: Path, limit: dict[str, object]) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps([{"name": "a", "scopes": ["read"], "digest": "0" * 64, **limit}]))
    with pytest.raises(UsageError, match=str(path)):
        load_keys(path)
    with pytest.raises(UsageError, match="--days 0"):
        add_key(tmp_path / "other.json", "b", READ, (), days=0)
