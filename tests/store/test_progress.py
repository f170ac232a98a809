import io
import threading

import pytest

from arwkv_store.commands import progress
from arwkv_store.commands.progress import Progress, working


def test_off_a_terminal_prints_a_line_at_the_end_only() -> None:
    stream = io.StringIO()
    with Progress("work", 100, stream=stream) as bar:
        bar.advance(40, size_bytes=1000)
        bar.advance(60)
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("work: 100 of 100 tokens")
    assert line.endswith("done")


def test_off_a_terminal_prints_a_line_whenever_the_interval_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE_S", 0.0)
    stream = io.StringIO()
    with Progress("work", None, done_tokens=5, stream=stream) as bar:
        bar.advance(40, note="loss 1.5")
    assert stream.getvalue().splitlines()[0].startswith("work: 45 tokens")
    assert "loss 1.5" in stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_draws_a_bar() -> None:
    stream = Terminal()
    with Progress("work", 100, stream=stream) as bar:
        bar.advance(100, size_bytes=10)
    assert "100%" in stream.getvalue()


def test_off_a_terminal_a_line_says_that_time_passes_while_nothing_advances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE_S", 0.0)
    stream = io.StringIO()
    bar = Progress("work", 100, stream=stream)
    bar.tick()
    bar.tick()
    assert stream.getvalue() == "work: 0 of 100 tokens, 0 tokens/s\n", "the next line is 30 s away"


class Signalling(io.StringIO):
    """Says when something was written for the third time."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal, self._writes, self.often = terminal, 0, threading.Event()

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        self._writes += "loading" in text
        if self._writes == 3:
            self.often.set()
        return super().write(text)


@pytest.mark.parametrize(("terminal", "ends"), [(True, "\r"), (False, "\n")])
def test_work_without_a_measure_says_what_it_is_and_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, ends: str
) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE_S", 0.0)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    stream = Signalling(terminal)
    with working("loading", stream, every_s=0.001):
        assert stream.getvalue().startswith(f"loading{ends}")
        assert stream.often.wait(60)
    assert f"loading: 0 s{ends}" in stream.getvalue()
    assert stream.getvalue().endswith("\n")
