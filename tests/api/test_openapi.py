"""The OpenAPI document: what it promises is what the service does, and a change of it is a decision."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from openapi_spec_validator import validate

from api_serving import serving

HERE = Path(__file__).parent
SNAPSHOT = HERE / "openapi.json"
CASES = 2000


def test_document_is_the_one_on_record(client: TestClient) -> None:
    """To accept a change: write the answer of /openapi.json, indented by one, into tests/api/openapi.json."""
    assert client.get("/openapi.json").json() == json.loads(SNAPSHOT.read_text())


def test_document_is_valid_openapi(client: TestClient) -> None:
    validate(client.get("/openapi.json").json())


def test_every_operation_says_what_it_does(client: TestClient) -> None:
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], (method, path)
            if path.startswith("/v1/"):
                for status, answer in operation["responses"].items():
                    if int(status) >= 400:
                        content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
                        assert answer["content"] == content, (method, path, status)


@pytest.mark.slow
def test_service_holds_to_its_document_whatever_is_asked(root: Path, tmp_path: Path) -> None:
    """schemathesis, every operation and every check: no server error, no answer that the document does not promise."""
    run_folder = root / "run"
    run_folder.mkdir()
    (run_folder / "metrics.jsonl").write_text('{"stage": "align", "step": 1, "loss": 1.0}\n')
    with serving("--root", str(root), "--api-key", "secret", cache=tmp_path) as (url, _):
        command = [Path(sys.executable).parent / "schemathesis", "--config-file", HERE / "schemathesis.toml"]
        flags = ["--checks", "all", "-n", "150", "--seed", "1", "--phases", "examples,coverage,fuzzing", "--no-color"]
        key = ["-H", "Authorization: Bearer secret"]
        run = subprocess.run(
            [*command, "run", f"{url}/openapi.json", *flags, *key],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "SCHEMATHESIS_HOOKS": str(HERE / "schema_checks.py")},
            check=False,
        )
    assert run.returncode == 0, run.stdout[-8000:]
    (generated,) = re.findall(r"(\d+) generated", run.stdout)
    assert int(generated) >= CASES
