"""The command stopped and killed: what is committed stays, what is not is made again, bit for bit."""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from arwkv_store import open_dataset
from producer_captures import MAX_LENGTH, Captures

KILL_RECORDED = Path(__file__).with_name("kill_recorded.py")


@pytest.fixture
def arguments(tiny_teacher: Path, tiny_corpus: Path) -> list[str]:
    flags = f"--top-k 8 --hidden-states attention --layers 1 --max-length {MAX_LENGTH} --samples-per-shard 4 --json"
    return ["--teacher", str(tiny_teacher), "--data", str(tiny_corpus), *flags.split()]


def start(arguments: list[str], out: Path, python: Sequence[str] = (sys.executable,)) -> "subprocess.Popen[str]":
    """The command with `--out shards`, run in `out`'s parent: the very same words wherever the dataset lies.

    Words matter: dataset.json records the command, and every shard carries dataset.json's hash.
    """
    out.parent.mkdir(exist_ok=True)
    command = [*python, "-c", "from arwkv_producer.cli import main; main()", "generate", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, "--out", out.name], env=environment, cwd=out.parent, text=True, **pipes)


def committed(out: Path) -> int:
    return len(list(out.glob("shards/part-*.json")))


def hashes(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.glob("shards/*.arrow")}


def wait_for_a_shard(process: "subprocess.Popen[str]", out: Path) -> None:
    """One more than there were when the process had just started; or the process's end."""
    before = committed(out)
    while committed(out) == before and process.poll() is None:
        time.sleep(0.005)


@pytest.mark.timeout(900)
def test_a_signal_finishes_the_shard_a_second_stops_at_once_and_the_same_command_continues(
    python_with_vllm: list[str], arguments: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "stopped" / "shards"
    process = start(arguments, out, python_with_vllm)
    wait_for_a_shard(process, out)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=280)
    assert process.returncode == 75, stderr
    assert re.search(r"producer: finishing shard \d+ of \d+, about \d+ \w+; again to stop now", stderr), stderr
    assert stderr.splitlines()[-1].endswith("shards left; run the same command again to continue")
    assert stdout == ""
    before = committed(out)
    assert 0 < before < open_dataset(str(out)).info.corpus.parts

    process = start(arguments, out, python_with_vllm)
    wait_for_a_shard(process, out)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    said = ""
    while "again to stop now" not in said and process.poll() is None:  # two signals at one instant may be one
        said = process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=280)
    assert process.returncode == 75, stderr
    assert stderr.splitlines()[-1] == "producer: stopped; run the same command again to continue", stderr
    assert before < committed(out) < open_dataset(str(out)).info.corpus.parts
    before = committed(out)

    process = start(arguments, out, python_with_vllm)
    stdout, stderr = process.communicate(timeout=280)
    assert process.returncode == 0, stderr
    summary = json.loads(stdout)
    assert (summary["shards_present_before"], summary["shards"]) == (before, summary["corpus"]["shards"] - before)
    assert len(open_dataset(str(out))) == summary["corpus"]["samples"]
    assert f"producer: {summary['tokens']:,} of {summary['tokens']:,} tokens" in stderr, "counted by the engine"
    assert not any(word in stderr for word in ("Traceback", "WARNING", "INFO")), stderr


@pytest.mark.crash
@pytest.mark.timeout(1200)
def test_killed_at_random_instants_it_ends_with_the_same_shards(arguments: list[str], tmp_path: Path) -> None:
    whole = tmp_path / "whole" / "shards"
    stdout, stderr = start(arguments, whole).communicate(timeout=200)
    duration_s = json.loads(stdout)["capture_s"]
    chance = random.Random(7)
    outs = [tmp_path / "killed-0" / "shards"]
    kills = 0
    while kills < 20:
        process = start(arguments, outs[-1])
        if kills % 2:
            wait_for_a_shard(process, outs[-1])
            time.sleep(chance.uniform(0, duration_s / 4))
        else:
            time.sleep(chance.uniform(1, 25))
        process.kill()
        _, stderr = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), stderr
        kills += process.returncode == -signal.SIGKILL
        for path in outs[-1].glob("shards/*.json"):
            assert hashes(outs[-1])[path.stem + ".arrow"] == hashes(whole)[path.stem + ".arrow"]
        if kills % 7 == 0 or process.returncode == 0:  # begin again, so that early instants are met too
            outs.append(tmp_path / f"killed-{len(outs)}" / "shards")
    for out in outs:
        stdout, stderr = start(arguments, out).communicate(timeout=200)
        assert json.loads(stdout), stderr
        assert hashes(out) == hashes(whole)


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_five_hundred_kills_of_a_recorded_capture_lose_and_repeat_nothing(
    captures: Captures, tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    flags = {"max_length": MAX_LENGTH, "top_k": 16, "hidden_states": "attention", "samples_per_shard": 4}
    config = {**flags, "teacher": str(tiny_teacher), "data": [str(tiny_corpus)]}
    asked = {"recording": str(captures.folder / "base"), "config": config, "folder": str(tmp_path), "kills": 500}
    finished = subprocess.run(
        [sys.executable, str(KILL_RECORDED)],
        input=json.dumps({**asked, "seed": 11}),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(KILL_RECORDED.parents[1])},
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    happened = json.loads(finished.stdout)
    assert happened["wrong"] == []
    assert happened["kills"] == 500
    assert happened["kills_among_commits"] > 100, happened
    assert happened["datasets"] > 3, happened
