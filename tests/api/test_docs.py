"""The documentation names everything that there is, nothing that there is not, and its examples work as pasted."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import httpx
from fastapi.testclient import TestClient

from api_serving import serving
from arwkv_api.config import ServeConfig
from arwkv_api.http.parameters import PAGE_LIMIT
from arwkv_api.http.protocol import HEAD_LIMIT_BYTES, HEAD_TIMEOUT_S, OTHER_DESCRIPTORS, SEND_TIMEOUT_S
from arwkv_api.index.database import SCHEMA_REVISION
from arwkv_api.index.query import MANIFEST_PAGE_BYTES
from arwkv_api.views.runs import ANSWER_BYTES, LINE_LIMIT_BYTES
from arwkv_store.format.seal import MAX_DOCUMENT_BYTES
from store_examples import write_example_dataset

DOCS = Path(__file__).parents[2] / "docs"
API, OPERATIONS = (DOCS / "api.md").read_text(), (DOCS / "operations.md").read_text()


def test_every_operation_is_documented_and_no_other(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    offered = {f"{method.upper()} {path}" for path, operations in paths.items() for method in operations}
    assert set(re.findall(r"^\| `([A-Z]+ /\S*)`", API, re.M)) == offered


def test_every_query_parameter_is_documented(client: TestClient) -> None:
    rows = dict(re.findall(r"^\| `([A-Z]+ /\S*)` \| (.*) \|$", API, re.M))
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "query" and method == "get":
                    assert f"`{parameter['name']}" in rows[f"GET {path}"], (path, parameter["name"])


def test_every_flag_is_documented_and_no_other() -> None:
    flags = {"--" + field.name.replace("_", "-") for field in fields(ServeConfig)}
    assert set(re.findall(r"^\| `(--[a-z-]+)` \|", OPERATIONS, re.M)) == flags


def test_every_metric_is_documented_and_no_other(client: TestClient) -> None:
    text = client.get("/metrics").text
    exposed = set(re.findall(r"^# TYPE (arwkv_\w+) ", text, re.M)) - set(re.findall(r"(arwkv_\w+_created)", text))
    assert set(re.findall(r"`(arwkv_[a-z_]+)`", OPERATIONS)) == exposed


def test_examples_work_as_pasted(server: str, tmp_path: Path) -> None:
    for line in re.findall(r"^curl .*$", API, re.M):
        command = shlex.split(line.replace("http://127.0.0.1:8000", server))
        run = subprocess.run([*command, "--fail"], capture_output=True, cwd=tmp_path, timeout=60, check=False)
        assert run.returncode == 0, (line, run.stderr)
    assert (tmp_path / "part.arrow").read_bytes() == httpx.get(f"{server}/v1/datasets/train/shards/0/data").content


def test_readme_asks_the_service_as_it_is(tmp_path: Path) -> None:
    write_example_dataset(tmp_path / "shards" / "logits")
    with serving("--root", str(tmp_path / "shards"), cache=tmp_path / "cache") as (url, _):
        lines = re.findall(r"^curl .*$", (DOCS.parent / "README.md").read_text(), re.M)
        for line in lines:
            command = shlex.split(line.replace("http://127.0.0.1:8000", url))
            run = subprocess.run([*command, "--fail"], capture_output=True, timeout=60, check=False)
            assert run.returncode == 0, line
            assert json.loads(run.stdout), line
    assert lines


def test_commands_work_as_pasted(tmp_path: Path) -> None:
    """`api key`, then each `api serve` with the key file that it made, and `store reindex` of what it serves."""
    write_example_dataset(tmp_path / "shards" / "train")
    text = (DOCS.parent / "README.md").read_text() + API + OPERATIONS
    keys = re.findall(r"^api key .*$", text, re.M)
    assert keys
    for key in keys:
        subprocess.run(_command(key), cwd=tmp_path, check=True, capture_output=True, timeout=60)
    serve = {line.partition("#")[0].rstrip(" &") for line in re.findall(r"^api serve .*$", text, re.M)}
    (reindex,) = re.findall(r"^store reindex .*$", text, re.M)
    assert len(serve) >= 2
    for line in serve:
        flags = [str(tmp_path / word) if (tmp_path / word).exists() else word for word in shlex.split(line)[2:]]
        with serving(*flags, cache=tmp_path / "cache") as (url, _):
            if "--keys" not in flags:
                command = _command(reindex.replace("http://127.0.0.1:8000", url))
                said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
                assert "3 shards" in said


def _command(line: str) -> list[str]:
    name, *words = shlex.split(line)
    return [str(Path(sys.executable).parent / name), *words]


def test_limits_are_those_of_the_code() -> None:
    config = {field.name: field.default for field in fields(ServeConfig)}
    assert f"| Items in a page of a list | {PAGE_LIMIT:,} " in API
    assert f"`--range-limit` ({config['range_limit']})" in API
    assert config["request_limit_bytes"] == LINE_LIMIT_BYTES == 1 << 20
    assert f"| {MANIFEST_PAGE_BYTES >> 20} MiB in total, at least one |" in API
    assert f"10,000, and {ANSWER_BYTES >> 20} MiB in total; 1,000 |" in API
    assert f"{HEAD_LIMIT_BYTES >> 10} KiB; the head must arrive within {HEAD_TIMEOUT_S:.0f} s;" in API
    assert f"| {SEND_TIMEOUT_S:.0f} s for about 200 kB;" in API
    assert f"minus {OTHER_DESCRIPTORS};" in API
    assert f"| A manifest or dataset.json | {MAX_DOCUMENT_BYTES >> 20} MiB |" in API


def test_schema_revision_is_the_newest_migration() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    import arwkv_api

    config = Config()
    config.set_main_option("script_location", str(Path(arwkv_api.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == SCHEMA_REVISION
