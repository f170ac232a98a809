"""The real server: how it starts, what it prints, how it ends."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from api_serving import python_with_api, serving
from arwkv_api.config import ServeConfig


def _api(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [*python_with_api(), "-m", "arwkv_api", *arguments]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cwd), "ARWKV_API_KEY": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False, cwd=cwd)


def test_serves_what_its_line_on_stdout_says(root: Path, tmp_path: Path) -> None:
    with serving("--root", str(root), cache=tmp_path) as (url, pid):
        assert httpx.get(f"{url}/ready").json()["ready"]
        assert Path(f"/proc/{pid}").exists()
        assert [item["name"] for item in httpx.get(f"{url}/v1/datasets").json()["items"]] == ["heldout", "train"]


def test_several_workers_share_one_port_and_one_index(root: Path, tmp_path: Path) -> None:
    with serving("--root", str(root), "--workers", "2", cache=tmp_path) as (url, _):
        for _ in range(20):
            assert httpx.get(f"{url}/v1/datasets/train", timeout=20).json()["shards"] == 5
        assert "arwkv_http_requests_total" in httpx.get(f"{url}/metrics").text


def test_several_workers_together_admit_what_the_flag_says(tmp_path: Path) -> None:
    config = ServeConfig(root=((str(tmp_path),),), workers=4, requests_per_s=10.0)
    assert config.settings().requests_per_s == 2.5


def test_roots_may_be_several_flags_or_several_words(root: Path, tmp_path: Path) -> None:
    train, heldout = str(root / "train"), str(root / "heldout")
    for flags in (["--root", train, heldout], ["--root", train, "--root", heldout]):
        with serving(*flags, cache=tmp_path) as (url, _):
            assert len(httpx.get(f"{url}/v1/datasets").json()["items"]) == 2


def test_logs_are_json_lines_with_request_ids(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "arwkv_api", "serve", "--root", str(root), "--port", "0", "--json"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    process = subprocess.Popen(
        [*command, "--log-format", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["url"]
    answer = httpx.get(f"{url}/health", headers={"X-Request-ID": "mine-1"})
    process.send_signal(signal.SIGTERM)
    lines = [json.loads(line) for line in process.communicate(timeout=60)[1].splitlines()]
    assert answer.headers["x-request-id"] == "mine-1"
    (request,) = [line for line in lines if line["logger"] == "arwkv_api.access"]
    assert (request["request_id"], request["path"], request["status"]) == ("mine-1", "/health", 200)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--root", "/no/such/folder"], "/no/such/folder: not a folder"),
        (["--root", ".", "--host", "0.0.0.0"], "no key is set"),
        (["--root", ".", "--host", "example.invalid"], "no key is set"),
        (["--root", ".", "--database", "sqlite://"], "the index needs a file"),
        (["--root", ".", "--database", "nonsense"], "write sqlite:///FILE"),
        (["--root", ".", "--database", "oracle://x/y"], "write sqlite:///FILE"),
        (["--root", ".", "--keys", "/no/such/keys"], "/no/such/keys"),
        (["--root", ".", "--workers", "0"], "--workers 0: must be at least 1"),
        (["--root", ".", "--port", "70000"], "--port 70000"),
        (["--root", ".", "--workers", "2", "--keys", "/no/such/keys"], "/no/such/keys"),
        (["--root", ".", "--database", "oracle://u:sesame@x/y"], "://***@x/y"),
        (["--root", ".", "--database", "postgresql+nodriver://u:ses/ame@x/y"], "://***@x/y"),
        (["--root", ".", "--database", "postgresql://u:sesame@x:port/y"], "://***@x:port/y"),
        (["--root", ".", "--database", "sqlite:///text.txt"], "file is not a database"),
        (
            ["--root", ".", "--database", "sqlite:///newer.sqlite3"],
            "its schema is 9999, but this release knows only schemas up to 00",
        ),
    ],
)
def test_bad_start_is_one_line_with_the_way_out(flags: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("no database, but a text of some length\n" * 100)
    with closing(sqlite3.connect(tmp_path / "newer.sqlite3")) as newer, newer:
        newer.execute("CREATE TABLE alembic_version (version_num TEXT)")
        newer.execute("INSERT INTO alembic_version VALUES ('9999')")
    run = _api("serve", "--port", "0", *flags, cwd=tmp_path)
    assert run.returncode == 2
    (line,) = [line for line in run.stderr.splitlines() if "Error" in line]
    assert said in line
    assert "ses" not in line
    assert "Traceback" not in run.stderr


def test_help_has_titled_groups_and_no_default_of_none(tmp_path: Path) -> None:
    said = _api("serve", "--help", cwd=tmp_path).stdout
    titles = [f"{name} options" for name in ("content", "network", "keys", "index", "limits")]
    places = [said.find(title) for title in titles]
    assert -1 not in places
    assert places == sorted(places)
    assert "None" not in said


def test_taken_port_is_said_plainly(root: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        run = _api("serve", "--root", str(root), "--port", str(taken.getsockname()[1]), cwd=tmp_path)
    assert run.returncode == 2
    assert "Address already in use" in run.stderr


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_sigterm_lets_a_running_transfer_finish(tmp_path: Path, workers: str) -> None:
    from store_examples import example_dataset_info, write_example_dataset

    info = example_dataset_info(samples=400, samples_per_part=400, hidden_size=1024)
    write_example_dataset(tmp_path / "root" / "big", info=info, length=64)
    expected = (tmp_path / "root" / "big" / "shards" / "part-000000.hidden.arrow").read_bytes()
    assert len(expected) > 30 << 20  # more than any socket buffer
    with serving("--root", str(tmp_path / "root"), "--workers", workers, cache=tmp_path) as (url, pid):
        with httpx.stream("GET", f"{url}/v1/datasets/big/shards/0/data?file=hidden") as answer:
            parts = answer.iter_bytes()
            received = [next(parts)]
            os.kill(pid, signal.SIGTERM)
            received += parts
        assert b"".join(received) == expected


@pytest.mark.slow
def test_index_can_be_deleted_and_comes_back(root: Path, tmp_path: Path) -> None:
    index = tmp_path / "index.sqlite3"
    flags = ["--root", str(root), "--database", f"sqlite:///{index}"]
    with serving(*flags, cache=tmp_path) as (url, _):
        before = httpx.get(f"{url}/v1/datasets/train/stats").json()
    for file in tmp_path.glob("index.sqlite3*"):
        file.unlink()
    with serving(*flags, cache=tmp_path) as (url, _):
        assert httpx.get(f"{url}/v1/datasets/train/stats").json() == before
