import io

import pytest

from arwkv_store.commands import progress
from arwkv_store.commands.progress import Progress


def test_off_a_terminal_prints_a_line_at_the_end_only() -> None:
    stream = io.StringIO()
    with Progress("work", 100, stream=stream) as bar:
        bar.advance(40, size_bytes=1000)
        bar.advance(60)
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("work: 100 of 100 tokens")
    assert line.endswith("done")


def test_off_a_terminal_prints_a_line_whenever_the_interval_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
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
