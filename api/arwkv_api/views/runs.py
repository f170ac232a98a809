"""Training runs: folders with a metrics.jsonl, read as they grow."""

import json
import math
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pydantic_core import to_json

from arwkv_api.errors import BadCursor
from arwkv_api.index.lease import pause_s
from arwkv_api.roots.files import heartbeats_in, open_inside, read_inside
from arwkv_api.roots.folders import METRICS, run_folders
from arwkv_api.words import words_in
from arwkv_store.dataset.notes_file import LocalNotes
from arwkv_store.errors import ArwkvError, NotFound
from arwkv_store.format.heartbeat import Heartbeat
from arwkv_store.format.notes import Notes

# A run that appears is listed within this, or later where the folders are slow to walk.
FRESH_S = 2.0
# Longest line that is taken for a line of figures.
LINE_LIMIT_BYTES = 1 << 20
# An answer with figures ends after the line with which it grows beyond this.
ANSWER_BYTES = 8 << 20
SAMPLES, SETTINGS, STAGE = "samples.jsonl", "run.json", "stage.json"
STAGES = ("align", "distill", "sft", "dpo")
SAMPLES_LIMIT_BYTES = 16 << 20


@dataclass(frozen=True)
class Figures:
    """Lines of figures as JSON, the place after them, and whether the file was replaced since the cursor was given."""

    items: list[bytes]
    next_cursor: str
    restarted: bool


class Runs:
    """Where the runs lie. However many viewers ask, the folders are walked now and then only."""

    def __init__(self, roots: tuple[Path, ...]) -> None:
        self._roots, self._found = roots, dict[str, Path]()
        self._walked_s, self._took_s = -math.inf, 0.0
        self._lock = threading.Lock()

    def folders(self, fresh_s: float = FRESH_S) -> dict[str, Path]:
        """Each run's folder by its name, as found less than `fresh_s` ago, or longer where walking takes long."""
        with self._lock:
            began_s = time.monotonic()
            if began_s >= self._walked_s + max(fresh_s, pause_s(self._took_s)):
                self._found = run_folders(self._roots)
                self._walked_s = time.monotonic()
                self._took_s = self._walked_s - began_s
            return self._found

    def find(self, name: str) -> Path:
        """The folder of the run called `name`, even if it began just now. Raises NotFound."""
        found = self._found.get(name) or self.folders(fresh_s=0).get(name)
        if found is None:
            raise NotFound(f"run {name[:100]!r}: no such folder with a {METRICS}; GET /v1/runs lists the runs")
        return found


def heartbeat_of(folder: Path) -> Heartbeat | None:
    """What the run said last; None if it has no heartbeat, as one of an earlier release."""
    return next(filter(None, map(Heartbeat.from_bytes, heartbeats_in(folder))), None)


def read_settings(folder: Path) -> dict[str, Any] | None:
    """The run's run.json: settings, base, shards and start; None if there is none that can be read."""
    return _document(folder, SETTINGS)


def notes_of(folder: Path) -> Notes:
    """People's notes on the run; empty ones where there are none that can be read."""
    try:
        return Notes.from_bytes(LocalNotes(folder).read(), folder.name)
    except ArwkvError:
        return Notes()


def is_found(words: Iterable[str], name: str, folder: Path) -> bool:
    """Whether each word occurs in the run's name, its notes or its run.json."""
    notes = notes_of(folder)
    texts = words_in(name, notes.text, notes.tags, read_settings(folder))
    return all(word in texts for word in words)


def read_stages(folder: Path) -> dict[str, dict[str, Any]]:
    """The summaries of the finished stages by name, in their order."""
    found = {stage: _document(folder / stage, STAGE) for stage in STAGES}
    return {stage: summary for stage, summary in found.items() if summary is not None}


def _document(folder: Path, name: str) -> dict[str, Any] | None:
    try:
        found = _object(read_inside(folder, name, LINE_LIMIT_BYTES))
    except OSError:
        return None
    return None if found is None or _as_json(found) is None else found


def read_figures(folder: Path, cursor: str | None, limit: int) -> Figures:
    """Up to `limit` lines after `cursor`. A last line that is still being written is left for the next time.

    Raises BadCursor, and NotFound where the file went away.
    """
    file_id, offset = _parse(cursor)
    try:
        fd = open_inside(folder, METRICS)
    except OSError as error:
        raise NotFound(f"run {folder.name!r}: {METRICS}: {error.strerror or error}") from error
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        restarted = cursor is not None and (file_id != status.st_ino or offset > status.st_size)
        offset = 0 if restarted else offset
        file.seek(offset)
        items: list[bytes] = []
        size_bytes = 0
        while len(items) < limit and size_bytes < ANSWER_BYTES and (line := _line(file)) is not None:
            offset = file.tell()
            if (figures := _object(line)) is not None and (text := _as_json(figures)) is not None:
                items.append(text)
                size_bytes += len(text)
    return Figures(items, f"{status.st_ino}-{offset}", restarted)


def _line(file: BinaryIO) -> bytes | None:
    """The next line, empty where it is too long to be one of figures; None where it is still being written."""
    line = piece = file.readline(LINE_LIMIT_BYTES)
    while len(piece) == LINE_LIMIT_BYTES and not piece.endswith(b"\n"):
        line, piece = b"", file.readline(LINE_LIMIT_BYTES)
    return line if piece.endswith(b"\n") else None


def read_samples(folder: Path, limit: int) -> list[dict[str, Any]]:
    """The newest `limit` lines of the run's samples.jsonl, newest first; none where it has no such file.

    A line is an object with the texts `prompt`, `teacher` and `student`, and may have `stage` and `step`.
    """
    try:
        fd = open_inside(folder, SAMPLES)
    except OSError:
        return []
    with os.fdopen(fd, "rb") as file:
        file.seek(max(os.fstat(fd).st_size - SAMPLES_LIMIT_BYTES, 0))
        lines = [sample for line in file.read(SAMPLES_LIMIT_BYTES).splitlines() if (sample := _sample(line))]
    return lines[: -limit - 1 : -1]


def _sample(line: bytes) -> dict[str, Any] | None:
    sample = _object(line) or {}
    step, stage = sample.get("step"), sample.get("stage")
    texts = {name: sample.get(name) for name in ("prompt", "teacher", "student")}
    if not all(isinstance(text, str) for text in texts.values()) or _as_json(sample) is None:
        return None
    return {**texts, "step": step if type(step) is int else None, "stage": stage if isinstance(stage, str) else None}


def _as_json(value: dict[str, Any]) -> bytes | None:
    """The object as it can be sent; None for one that is no text (half a surrogate pair) or too deep."""
    try:
        return to_json(value, inf_nan_mode="null")
    except ValueError:
        return None


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(line, parse_constant=lambda _name: None)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _parse(cursor: str | None) -> tuple[int, int]:
    if cursor is None:
        return 0, 0
    file_id, _, offset = cursor.partition("-")
    if not (file_id.isdecimal() and offset.isdecimal() and len(cursor) <= 40 and cursor.isascii()):
        raise BadCursor(f"cursor={cursor[:40]!r}: not a cursor of a run's metrics; start again without a cursor")
    return int(file_id), int(offset)
