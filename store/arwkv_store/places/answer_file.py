"""A JSONL file that is written in order over hours, and continued after a stop; it has its name once it is complete.

FILE.origin    how its lines are made, written first and compared when the file is continued
FILE.part      the lines so far; locked while a process writes them
FILE           all lines
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from arwkv_store.errors import ConfigurationDiffers, TryAgain, UsageError
from arwkv_store.places.commit import sync_folder, write_once


def origin_of(path: Path) -> Path:
    """The file that says how the lines of a file were made."""
    return path.with_name(path.name + ".origin")


@dataclass
class AnswerFile:
    """A file that is being written, or complete."""

    path: Path
    lines: int
    """How many whole lines there are."""
    _part: IO[bytes] | None
    """None: the file is complete."""

    @property
    def complete(self) -> bool:
        """Whether nothing is left to write."""
        return self._part is None

    def add(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write some lines durably."""
        assert self._part is not None, "a complete file takes no more lines"
        self._part.write(
            "".join(json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in records).encode()
        )
        self._part.flush()
        os.fsync(self._part.fileno())
        self.lines += len(records)

    def finish(self) -> None:
        """Give the file its name."""
        assert self._part is not None, "a complete file is finished"
        os.replace(self._part.name, self.path)
        sync_folder(self.path.parent)
        self._part = None


@contextlib.contextmanager
def answer_file(path: Path, origin: Mapping[str, Any]) -> Iterator[AnswerFile]:
    """Begin or continue a file whose lines are made as `origin` says.

    Raises ConfigurationDiffers if it was begun otherwise, naming each field; TryAgain while another process writes it;
    UsageError if it exists without an origin, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not origin_of(path).exists():
            raise UsageError(f"--out {path}: it exists, and nothing says how it was made; choose another file")
        write_once(origin_of(path), (json.dumps(origin, indent=2, sort_keys=True) + "\n").encode())
        _require_same(path, origin)
        if path.exists():
            with path.open("rb") as whole:
                lines = sum(1 for _ in whole)
            yield AnswerFile(path, lines, None)
            return
        part = path.with_name(path.name + ".part").open("a+b")
    except OSError as error:
        raise UsageError(f"--out {path}: {error.strerror}; choose a file that can be written") from error
    with part:
        try:
            fcntl.flock(part.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TryAgain(f"--out {path}: another process is writing it; wait until it ends") from error
        yield AnswerFile(path, _whole_lines(part), part)


def written_by(path: Path) -> str | None:
    """The checkpoint that wrote a file of answers, by its hash; None for any other file."""
    try:
        origin = json.loads(origin_of(path).read_bytes())
    except (OSError, ValueError):
        return None
    made = origin.get("written_by") if isinstance(origin, dict) else None
    return made if isinstance(made, str) else None


def _whole_lines(part: IO[bytes]) -> int:
    """Their number; a last line that a kill truncated is removed."""
    part.seek(0)
    content = part.read()
    part.truncate(content.rfind(b"\n") + 1)
    return content.count(b"\n")


def _require_same(path: Path, origin: Mapping[str, Any]) -> None:
    before, asked = json.loads(origin_of(path).read_bytes()), json.loads(json.dumps(origin))
    ConfigurationDiffers.unless_same(origin_of(path), before, asked)
