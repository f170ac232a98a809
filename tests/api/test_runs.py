"""Training runs: what is listed, how their figures are followed, and what teacher and student made of a prompt."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api_eventually import eventually
from arwkv_api.roots import folders
from arwkv_api.views.runs import FRESH_S

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


@pytest.mark.parametrize(("search", "found"), [("ONE", 1), ("rad-rwkv7 qwen", 1), ("0.001", 1), ("qwen arwkv2", 0)])
def test_search_looks_in_the_name_and_the_settings(client: TestClient, run: Path, search: str, found: int) -> None:
    (run / "run.json").write_text(
        json.dumps({"preset": "rad-rwkv7", "base": {"name": "Qwen/Qwen2.5"}, "align_lr": 1e-3})
    )
    assert len(client.get("/v1/runs", params={"search": search}).json()["items"]) == found


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


def test_line_too_long_for_figures_is_passed_over(client: TestClient, run: Path) -> None:
    long = b'{"a": "' + b"x" * (2 << 20)
    (run / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + long + b'"}\n{"step": 3}\n' + long)
    answer = client.get(f"{RUN}/metrics").json()
    assert answer["items"] == [{"step": 1}, {"step": 3}]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('"}\n{"step": 5}\n')
    answer = client.get(f"{RUN}/metrics", params={"cursor": answer["next_cursor"]}).json()
    assert answer["items"] == [{"step": 5}]


def test_answer_with_figures_is_bounded_and_the_next_goes_on(
    client: TestClient, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arwkv_api.views.runs.ANSWER_BYTES", 30)
    first = client.get(f"{RUN}/metrics").json()
    assert len(first["items"]) == 1
    second = client.get(f"{RUN}/metrics", params={"cursor": first["next_cursor"]}).json()
    assert second["items"] == [{"stage": "align", "step": 2}]


def test_folder_that_cannot_be_listed_hides_no_other_run(
    client: TestClient, root: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "lost+found").mkdir()
    real = os.scandir

    def failing(path: str | Path) -> object:
        if Path(path).name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr("arwkv_api.roots.folders.os.scandir", failing)
    assert [item["name"] for item in client.get("/v1/runs").json()["items"]] == ["students-one"]
    assert client.get(f"{RUN}/metrics").status_code == 200


def test_many_viewers_walk_the_folders_once(client: TestClient, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walks, real = [], folders.run_folders
    monkeypatch.setattr("arwkv_api.views.runs.run_folders", lambda roots: walks.append(roots) or real(roots))
    for _ in range(5):
        assert client.get(f"{RUN}/metrics").status_code == 200
        assert len(client.get("/v1/runs").json()["items"]) == 1
    assert len(walks) == 1


def test_run_that_began_just_now_is_found_before_the_list_shows_it(client: TestClient, run: Path) -> None:
    assert len(client.get("/v1/runs").json()["items"]) == 1
    shutil.copytree(run, run.parent / "begun")
    eventually(lambda: client.get("/v1/runs/students-begun/metrics").is_success, patience_s=FRESH_S / 2)


def test_newest_runs_come_first_up_to_the_limit(client: TestClient, root: Path, run: Path) -> None:
    shutil.copytree(run, root / "older")
    os.utime(root / "older" / "metrics.jsonl", (0, 0))
    names = [[item["name"] for item in client.get(f"/v1/runs?limit={n}").json()["items"]] for n in (1, 2)]
    assert names == [["students-one"], ["students-one", "older"]]


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
