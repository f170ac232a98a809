"""Training runs: what is listed, how their figures are followed, and what teacher and student made of a prompt."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

RUN = "/v1/runs/students-one"


@pytest.fixture
def run(root: Path) -> Path:
    """A run with two lines of figures, in a folder of runs below the root."""
    folder = root / "students" / "one"
    folder.mkdir(parents=True)
    _append(folder / "metrics.jsonl", {"stage": "align", "step": 1, "loss": 2.5}, {"stage": "align", "step": 2})
    return folder


def _append(path: Path, *lines: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def test_runs_are_listed_by_their_path_below_the_root(client: TestClient, run: Path) -> None:
    (item,) = client.get("/v1/runs").json()["items"]
    assert item["name"] == "students-one"
    assert item["size_bytes"] == (run / "metrics.jsonl").stat().st_size


def test_figures_are_followed_line_by_line(client: TestClient, run: Path) -> None:
    first = client.get(f"{RUN}/metrics?limit=1").json()
    assert first["items"] == [{"stage": "align", "step": 1, "loss": 2.5}]
    second = client.get(f"{RUN}/metrics", params={"cursor": first["next_cursor"]}).json()
    assert (second["items"], second["restarted"]) == ([{"stage": "align", "step": 2}], False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3')
        file.flush()
        params = {"cursor": second["next_cursor"]}
        assert client.get(f"{RUN}/metrics", params=params).json()["items"] == []
        file.write("}\n")
    assert client.get(f"{RUN}/metrics", params=params).json()["items"] == [{"step": 3}]


def test_run_begun_anew_is_said_to_be(client: TestClient, run: Path) -> None:
    cursor = client.get(f"{RUN}/metrics").json()["next_cursor"]
    (run / "metrics.jsonl").unlink()
    _append(run / "metrics.jsonl", {"step": 0})
    answer = client.get(f"{RUN}/metrics", params={"cursor": cursor}).json()
    assert (answer["items"], answer["restarted"]) == ([{"step": 0}], True)


HOSTILE = ["[1]", "nonsense", '{"a": "\\ud800"}', '{"a": ' + "[" * 300 + "]" * 300 + "}", "[" * 100_000, "\0", '"\xff"']


def test_lines_that_cannot_be_sent_are_passed_over(client: TestClient, run: Path) -> None:
    (run / "metrics.jsonl").write_text("\n".join(HOSTILE) + '\n{"loss": NaN, "lr": 1e999, "n": 1}\n')
    (run / "samples.jsonl").write_text("\n".join(HOSTILE) + "\n")
    assert client.get(f"{RUN}/metrics").json()["items"] == [{"loss": None, "lr": None, "n": 1}]
    assert client.get(f"{RUN}/samples").json()["items"] == []


def test_samples_stand_side_by_side_newest_first(client: TestClient, run: Path) -> None:
    assert client.get(f"{RUN}/samples").json() == {"items": []}
    early = {"prompt": "def ", "teacher": "main", "student": "aaaa", "stage": "distill", "step": 10}
    late = {"prompt": "def ", "teacher": "main", "student": "main \U0001f642"}
    _append(run / "samples.jsonl", early, {"prompt": "no answer"}, late)
    expected = [{**late, "stage": None, "step": None}, early]
    assert client.get(f"{RUN}/samples").json()["items"] == expected
    assert client.get(f"{RUN}/samples?limit=1").json()["items"] == expected[:1]
    assert client.get("/v1/runs/absent/samples").status_code == 404


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_file_behind_a_symbolic_link_is_not_read(client: TestClient, run: Path, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"prompt": "", "teacher": "", "student": "secret"}\n')
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(secret)
    assert "secret" not in client.get(f"{RUN}/{name.removesuffix('.jsonl')}").text
