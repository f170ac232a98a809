"""Counters and the log of a run say what was done and how it ended."""

import json
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from arwkv_producer.check.samples import BadCapture
from arwkv_producer.config import GenerateConfig
from arwkv_producer.run.account import Account
from arwkv_store.errors import TryAgain, UsageError
from arwkv_store.format.heartbeat import Heartbeat
from arwkv_store.places.pulse import Pulse
from producer_captures import Captures


def asked(**flags: Any) -> GenerateConfig:
    return GenerateConfig(teacher="t", data=("d",), out="o", **flags)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def served(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        sample.name.removeprefix("arwkv_producer_") + "".join(sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_counters_are_served_while_the_run_lasts(captures: Captures) -> None:
    manifest, port = captures.open("base").shards[0], free_port()
    with Account(asked(metrics_port=port)) as account:
        account.begin(tokens=1000, shards=5)
        account.captured(700)
        account.committed("o", manifest)
        account.bad(3, BadCapture("sample 3 (a.txt): nothing"))
        counters = served(port)
    assert counters["captured_tokens_total"] == 700
    assert counters["tokens_total"] == manifest.tokens
    assert counters["samples_total"] == manifest.rows
    assert counters["written_bytes_total"] == manifest.size_bytes
    assert (counters["shards_total"], counters["shards_left"], counters["bad_samples_total"]) == (1, 4, 1)
    assert counters["tokens_per_second"] > 0
    with pytest.raises(OSError, match="refused"):
        served(port)


def test_heartbeat_tells_shards_speed_time_left_and_errors(captures: Captures, tmp_path: Path) -> None:
    manifest = captures.open("base").shards[0]
    with Account(asked()) as account, Pulse(str(tmp_path), kind="capture", unit="shards", total=5) as pulse:
        account.begin(tokens=5 * manifest.tokens, shards=5)
        account.follow("o", pulse, 5 * manifest.tokens)
        account.captured(manifest.tokens)
        account.committed("o", manifest)
        account.committed("another", manifest)
        account.bad(3, BadCapture("sample 3 (a.txt): nothing"))
        running = pulse.last
    assert (running.done, running.total, running.tokens, running.errors) == (1, 5, manifest.tokens, 1)
    assert running.tokens_per_s is not None
    assert running.left_s == pytest.approx(4 * manifest.tokens / running.tokens_per_s)
    last = Heartbeat.from_bytes((tmp_path / "heartbeat-0.json").read_bytes())
    assert last is not None
    assert (last.state, last.done, last.message) == ("finished", 1, "sample 3 (a.txt): nothing")
    made = Heartbeat.from_bytes((captures.folder / "base" / "heartbeat-0.json").read_bytes())
    assert made is not None
    assert (made.state, made.done) == ("finished", captures.summaries["base"]["shards"])


def test_a_taken_port_is_refused() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match=f"--metrics-port {port}: cannot listen on 127.0.0.1"):
            Account(asked(metrics_port=port))


def test_the_log_adds_up_to_the_summary(captures: Captures) -> None:
    lines = [json.loads(line) for line in (captures.folder / "base.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines[:2]] == ["corpus", "begin"]
    shards = [line for line in lines if line["event"] == "shard"]
    summary = captures.summaries["base"]
    for what in ("tokens", "samples", "size_bytes"):
        assert sum(line[what] for line in shards) == summary[what]
    assert sorted(line["part"] for line in shards) == list(range(summary["shards"]))
    assert (lines[0]["documents"], lines[-1]["event"], lines[-1]["status"]) == (20, "end", "finished")


@pytest.mark.parametrize(("error", "status"), [(TryAgain("later"), "stopped"), (BadCapture("no"), "failed")])
def test_the_log_says_how_the_run_ended(tmp_path: Path, error: Exception, status: str) -> None:
    path = tmp_path / "log.jsonl"
    for _ in range(2):  # a second run goes on in the same file
        with pytest.raises(type(error)), Account(asked(log_jsonl=str(path))):
            raise error
    ends = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(end["status"], end["message"]) for end in ends] == [(status, str(error))] * 2


def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--log-jsonl .*: Is a directory"):
        Account(asked(log_jsonl=str(tmp_path)))
