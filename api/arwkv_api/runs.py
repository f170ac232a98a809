"""Training runs: folders with a metrics.jsonl, read as they grow."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arwkv_api.folders import METRICS, run_folders
from arwkv_api.problems import BadCursor
from arwkv_api.transfer import open_inside
from arwkv_store.errors import NotFound

# Longest line that is taken for a line of figures.
LINE_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True)
class Figures:
    """Lines of figures, the place after them, and whether the file was begun anew since the place asked from."""

    items: list[dict[str, Any]]
    next_cursor: str
    restarted: bool


def find_run(folders: tuple[Path, ...], name: str) -> Path:
    """The folder of the run called `name`. Raises NotFound."""
    found = run_folders(folders).get(name)
    if found is None:
        raise NotFound(f"run {name[:100]!r}: no such folder with a {METRICS}; GET /v1/runs lists what is")
    return found


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
        items: list[dict[str, Any]] = []
        while len(items) < limit and (line := file.readline(LINE_LIMIT_BYTES)).endswith(b"\n"):
            offset += len(line)
            if (figures := _figures(line)) is not None:
                items.append(figures)
    return Figures(items, f"{status.st_ino}-{offset}", restarted)


def _figures(line: bytes) -> dict[str, Any] | None:
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
        raise BadCursor(f"cursor={cursor[:40]!r}: not a cursor of a run's metrics; start again without one")
    return int(file_id), int(offset)
