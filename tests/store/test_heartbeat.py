"""A heartbeat says what its process does, and is quiet about its own troubles."""

import time
from pathlib import Path

import fsspec
import pytest

from arwkv_store import TryAgain
from arwkv_store.format.heartbeat import LATE_S, Heartbeat
from arwkv_store.places import pulse as pulses
from arwkv_store.places.pulse import Pulse


def _said(folder: Path, process: int = 0) -> Heartbeat:
    beat = Heartbeat.from_bytes((folder / f"heartbeat-{process}.json").read_bytes())
    assert beat is not None
    return beat


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (None, "finished"),
        (TryAgain("later"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (ValueError("odd"), "failed"),
    ],
)
def test_last_beat_says_how_the_work_ended(tmp_path: Path, error: BaseException | None, state: str) -> None:
    def work() -> None:
        with Pulse(str(tmp_path), kind="capture", unit="shards", total=4, process=2, processes=3) as pulse:
            assert (_said(tmp_path, 2).state, _said(tmp_path, 2).processes) == ("running", 3)
            pulse.say(done=1, tokens=100, tokens_per_s=5.0, left_s=60.0)
            pulse.failed("one sample was bad")
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    beat = _said(tmp_path, 2)
    assert (beat.state, beat.done, beat.tokens, beat.left_s) == (state, 1, 100, None)
    assert beat.errors == (2 if state == "failed" else 1)
    assert beat.message == ("ValueError: odd" if state == "failed" else "one sample was bad")
    assert [path.name for path in tmp_path.iterdir()] == ["heartbeat-2.json"]


def test_process_that_says_nothing_for_long_has_stopped(tmp_path: Path) -> None:
    with Pulse(str(tmp_path), kind="training", unit="steps"):
        pass
    beat = _said(tmp_path)
    running = beat.model_copy(update={"state": "running"})
    assert running.state_at(running.at_s + LATE_S) == "running"
    assert running.state_at(running.at_s + LATE_S + 1) == "stopped"
    assert beat.state_at(beat.at_s + 10 * LATE_S) == "finished"
    assert running.model_copy(update={"every_s": 100.0}).state_at(running.at_s + 399) == "running"


def test_beats_go_on_by_themselves_in_a_store_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulses, "REMOTE_EVERY_S", 0.01)
    memory = fsspec.filesystem("memory")
    with Pulse("memory://beating", kind="capture", unit="shards"):
        first = memory.cat_file("/beating/heartbeat-0.json")
        deadline = time.monotonic() + 30
        while memory.cat_file("/beating/heartbeat-0.json") == first:
            assert time.monotonic() < deadline
    memory.rm("/beating", recursive=True)


def test_place_that_cannot_be_written_harms_nothing_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        Pulse(str(tmp_path / "absent"), kind="capture", unit="shards"),
        Pulse("hf://datasets/a/b", kind="capture", unit="shards"),
    ):
        pass
    assert caplog.text.count("no heartbeat is written") == 1


@pytest.mark.parametrize("raw", [b"", b"{}", b"null", b'{"format_version":2}', b"x" * (1 << 20), b'{"at_s":NaN}'])
def test_other_bytes_are_no_heartbeat(raw: bytes) -> None:
    assert Heartbeat.from_bytes(raw) is None
