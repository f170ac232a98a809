"""Actors on a real Ray cluster of this machine: one is killed, and every part is made once all the same."""

import contextlib
import json
import os
import pickle
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from arwkv_producer.check.samples import GaveUp
from arwkv_producer.config import GenerateConfig
from arwkv_producer.run import cluster as cluster_module
from arwkv_producer.run.account import Account
from arwkv_producer.run.job import Job
from arwkv_producer.run.parts import share
from arwkv_producer.teacher.teacher import Teacher
from arwkv_store import open_dataset
from arwkv_store.errors import UsageError
from producer_captures import MAX_LENGTH, Captures
from producer_recording import plain_corpus
from store_examples import example_dataset_info

LOCAL_CLUSTER = Path(__file__).with_name("local_cluster.py")
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
"""Of the cluster and of what joins it: the token is how Ray tells its own from strangers."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, psutil.Process]]:
    """Address and process of a cluster with two CPUs."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, str(LOCAL_CLUSTER)], text=True, env=ENVIRONMENT, **pipes) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield process.stdout.readline().strip(), psutil.Process(process.pid)
        process.stdin.close()
        process.wait(timeout=60)


def start(teacher: Path, corpus: Path, out: Path, *flags: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", "from arwkv_producer.cli import main; main()", "generate", "--json"]
    same_as_base = f"--max-length {MAX_LENGTH} --top-k 16 --hidden-states attention --samples-per-shard 4"
    arguments = ["--teacher", str(teacher), "--data", str(corpus), "--out", str(out), *same_as_base.split(), *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, *arguments], env=ENVIRONMENT, text=True, **pipes)


def working_actors(cluster: psutil.Process) -> list[psutil.Process]:
    found = []
    for process in cluster.children(recursive=True):
        try:
            if process.cmdline()[:1] == ["ray::CapturingActor.make"]:
                found.append(process)
        except psutil.Error:  # it ended meanwhile
            continue
    return found


def contents(out: Path) -> list[tuple[object, ...]]:
    """Every sample's numbers: shards carry the identity's hash and that the command, so bytes differ."""
    dataset = open_dataset(str(out))
    return [
        (
            sample.sample_id,
            sample.source,
            sample.tokens.tobytes(),
            sample.logits and (sample.logits.ids.tobytes(), sample.logits.logprobs.tobytes()),
            *(state.tobytes() for state in sample.hidden.values()),
        )
        for sample in (dataset[index] for index in range(len(dataset)))
    ]


@pytest.mark.slow
def test_a_killed_actor_costs_nothing_but_its_time(
    cluster: tuple[str, psutil.Process], captures: Captures, tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    address, processes = cluster
    log, out = tmp_path / "log.jsonl", tmp_path / "shards"
    process = start(tiny_teacher, tiny_corpus, out, "--ray", address, "--ray-actors", "2", "--log-jsonl", str(log))
    while not list(out.glob("shards/part-*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    actors = working_actors(processes)
    assert actors
    os.kill(actors[0].pid, signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert "an actor died (1 so far)" in stderr
    summary = json.loads(stdout)
    parts = [line["part"] for line in map(json.loads, log.read_text().splitlines()) if line["event"] == "shard"]
    assert sorted(parts) == list(range(summary["corpus"]["shards"])), "each part is acknowledged once"
    assert summary["shards"] == len(parts)
    assert summary["tokens"] == captures.summaries["base"]["tokens"]

    again = start(tiny_teacher, tiny_corpus, out, "--ray", address)
    stdout, stderr = again.communicate(timeout=120)
    assert json.loads(stdout)["shards"] == 0, stderr

    assert contents(out) == contents(captures.folder / "base")


@pytest.mark.slow
def test_sigterm_lets_actors_finish_what_they_have(
    cluster: tuple[str, psutil.Process], tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    process = start(tiny_teacher, tiny_corpus, out, "--ray", cluster[0])
    while not list(out.glob("shards/part-*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 75, stderr
    assert stderr.splitlines()[-1].endswith("shards left; run the same command again to continue")


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_named(tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    process = start(tiny_teacher, tiny_corpus, tmp_path / "shards", "--ray", "127.0.0.1:1")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 75, stderr
    assert "--ray 127.0.0.1:1: no cluster answers at this address" in stderr.splitlines()[-1]


class Call:
    """One that has been answered."""

    def __init__(self, answer: Any) -> None:
        self.answer = pickle.dumps(answer)


class RayOfOneProcess:
    """What the dispatch asks of Ray, done at once in this process."""

    exceptions = SimpleNamespace(RayTaskError=type("E", (Exception,), {}), RayActorError=type("E", (Exception,), {}))

    def remote(self, actor: type) -> Any:
        def made(*arguments: Any) -> Any:
            made = actor(*arguments)
            return SimpleNamespace(make=SimpleNamespace(remote=lambda parts: Call(made.make(parts))))

        return SimpleNamespace(options=lambda **needs: SimpleNamespace(remote=made))

    def put(self, value: Any) -> Any:
        return value

    def wait(self, calls: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return calls[:1], calls[1:]

    def get(self, call: Any) -> Any:
        return pickle.loads(call.answer)

    def cluster_resources(self) -> dict[str, int]:
        return {"CPU": 2}

    def nodes(self) -> list[dict[str, bool]]:
        return [{"Alive": True}]


def test_a_teacher_that_answers_nothing_ends_the_run_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts hold two samples and calls one part: five in a row are met over three calls."""
    work = share(asked(tmp_path), job_without_answers(tmp_path / "shards", samples=40, per_part=2))
    engine = SimpleNamespace(distribution=("ids",), capture=lambda prompts, keys, *_: [{} for _ in keys])
    monkeypatch.setattr(cluster_module, "PARTS_PER_CALL", 1)
    monkeypatch.setattr(cluster_module, "start_engine", lambda config, job: engine)
    monkeypatch.setattr(cluster_module, "_connected", lambda config: contextlib.nullcontext(RayOfOneProcess()))
    config = asked(tmp_path)
    with Account(config) as account, pytest.raises(GaveUp, match="gave up after 5 bad samples in a row; last: sample"):
        cluster_module.capture_on_cluster(config, [work], account, lambda: False)
    said = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    bad = [line["sample_id"] for line in said if line["event"] == "bad_sample"]
    assert bad == [0, 1, 2, 3, 4]


def asked(tmp_path: Path) -> GenerateConfig:
    log, out = str(tmp_path / "log.jsonl"), str(tmp_path / "shards")
    return GenerateConfig(teacher="t", data=("d",), out=out, ray="auto", log_jsonl=log)


def job_without_answers(out: Path, samples: int, per_part: int) -> Job:
    corpus = plain_corpus(samples, 6)
    info = example_dataset_info(samples=samples, samples_per_part=per_part, layers=())
    return Job(Teacher(model="m", name="m", revision=None, config={}, architecture="-"), corpus, info, str(out))


def test_actors_and_ranks_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="the actors share the work; leave --world-size out"):
        GenerateConfig(teacher="t", data=("d",), out="o", ray="auto", world_size=2)
