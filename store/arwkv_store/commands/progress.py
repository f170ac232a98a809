"""A bar on a terminal; off a terminal, a line after 10 seconds and then one every 30 seconds."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self, TextIO, TypeVar

from tqdm import tqdm

FIRST_LINE_S = 10.0
LINE_EVERY_S = 30.0


class Report(Protocol):
    """The progress of long work."""

    tokens: int
    size_bytes: int


Growing = TypeVar("Growing", bound=Report)


class Progress:
    """Counts tokens and bytes of long work towards `total_tokens` on stderr.

    Shows tokens/s, MB/s (of the `size_bytes` of `advance`) and the time left. Work done before a resume is given as
    `done_tokens`: it moves the bar and does not count as speed.
    """

    def __init__(
        self, title: str, total_tokens: int | None, *, done_tokens: int = 0, stream: TextIO | None = None
    ) -> None:
        self._title, self._total, self._before = title, total_tokens, done_tokens
        self._stream = stream or sys.stderr
        self._tokens = self._size_bytes = 0
        self._started = time.monotonic()
        self._next_line = self._started + FIRST_LINE_S
        self._bar: tqdm | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total_tokens, initial=done_tokens, desc=title, unit="tok", unit_scale=True, file=self._stream
            )

    def advance(self, tokens: int, size_bytes: int = 0, note: str = "") -> None:
        """Count `tokens` and `size_bytes` more; `note` (a loss, a shard's name) is shown after the rates."""
        self._tokens += tokens
        self._size_bytes += size_bytes
        if self._bar is not None:
            megabytes = f"{self.size_bytes_per_s / 1e6:.1f} MB/s" if self._size_bytes else ""
            self._bar.set_postfix_str(" ".join(filter(None, (megabytes, note))), refresh=False)
            self._bar.update(tokens)
        elif time.monotonic() >= self._next_line:
            self._print_line(note)

    def tick(self) -> None:
        """Update the time while nothing advances; `ticking` calls this."""
        if self._bar is not None:
            self._bar.refresh()
        elif time.monotonic() >= self._next_line:
            self._print_line("")

    @property
    def tokens_per_s(self) -> float:
        """Tokens advanced by this process per second since it began."""
        return self._tokens / max(time.monotonic() - self._started, 1e-9)

    @property
    def size_bytes_per_s(self) -> float:
        """Bytes advanced by this process per second since it began."""
        return self._size_bytes / max(time.monotonic() - self._started, 1e-9)

    def _print_line(self, note: str) -> None:
        self._next_line = time.monotonic() + LINE_EVERY_S
        done = self._before + self._tokens
        parts = [f"{done:,} tokens", f"{self.tokens_per_s:,.0f} tokens/s"]
        if self._total:
            parts[0] = f"{done:,} of {self._total:,} tokens"
        if self._total and self._tokens:
            parts.append(f"{max(self._total - done, 0) / max(self.tokens_per_s, 1e-9):,.0f} s left")
        if self._size_bytes:
            parts.append(f"{self.size_bytes_per_s / 1e6:.1f} MB/s")
        print(f"{self._title}: {', '.join(filter(None, [*parts, note]))}", file=self._stream, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._tokens:
            self._print_line("done" if error is None else "stopped")


@contextmanager
def ticking(tick: Callable[[], None], every_s: float = 1.0) -> Iterator[None]:
    """Call `tick` repeatedly on a separate thread until the block ends."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(every_s):
            tick()

    thread = threading.Thread(target=run, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def working(what: str, stream: TextIO | None = None, every_s: float = 1.0) -> Iterator[None]:
    """Print the current work and its time: on a terminal every second, otherwise after 10 s and every 30 s."""
    shown = stream or sys.stderr
    started = time.monotonic()
    next_line = started + FIRST_LINE_S
    ends = "\r" if shown.isatty() else "\n"

    def show() -> None:
        nonlocal next_line
        if ends == "\r" or time.monotonic() >= next_line:
            next_line = time.monotonic() + LINE_EVERY_S
            print(f"{what}: {time.monotonic() - started:.0f} s", end=ends, file=shown, flush=True)

    print(what, end=ends, file=shown, flush=True)
    try:
        with ticking(show, every_s):
            yield
    finally:
        if ends == "\r":
            print(file=shown, flush=True)


def followed(title: str, reports: Iterator[Growing], note: Callable[[Growing], str]) -> Growing:
    """The last of one or more reports; each is shown when it arrives, with its note."""
    tokens = size_bytes = 0
    with Progress(title, None) as progress:
        for report in reports:
            progress.advance(report.tokens - tokens, report.size_bytes - size_bytes, note(report))
            tokens, size_bytes = report.tokens, report.size_bytes
    return report
