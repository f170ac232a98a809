"""Checks that a dataset can be written at `--out`, and that it fits there."""

import os
import shutil
import sys
from pathlib import Path

from arwkv_producer.config import GenerateConfig
from arwkv_producer.run.identity import capture_info
from arwkv_producer.run.sizes import stored_bytes
from arwkv_producer.teacher.teacher import Teacher
from arwkv_store import DatasetInfo
from arwkv_store.errors import UsageError
from arwkv_store.format.layout import DATASET_FILE
from arwkv_store.places.target import target_of

ROOM_TO_USE = 0.9
"""Fraction of the free disk space that a dataset may take without --fill-disk."""


def both_places(out: str) -> tuple[str, str]:
    """The place of a dataset, and of the one with its held-out documents."""
    return out, out.rstrip("/") + "-held-out"


def require_room(config: GenerateConfig, teacher: Teacher, tokens: int) -> None:
    """Ask the user if the whole dataset would take more than 90% of the free disk space.

    Raises UsageError if the answer is no, or if there is no terminal to ask on.
    """
    problem = missing_room(config, teacher, tokens)
    if problem is None:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or not _agreed(f"{problem}; continue? [y/N] "):
        raise UsageError(f"{problem}; choose fewer layers or another disk, or set --fill-disk")


def missing_room(config: GenerateConfig, teacher: Teacher, tokens: int) -> str | None:
    """The problem in words if the whole dataset would take more than 90% of the free disk space, else None."""
    if "://" in config.out:
        return None
    folder = Path(config.out).expanduser().absolute()
    needed = sum(stored_bytes(capture_info(config, teacher), teacher.width, teacher.head_rows).values()) * tokens
    present = sum(file.stat().st_size for file in folder.glob("shards/*"))
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    if needed - present <= ROOM_TO_USE * free:
        return None
    return f"--out {config.out}: the shards take about {needed / 1e9:,.1f} GB and {free / 1e9:,.1f} GB are free"


def present_info(out: str) -> DatasetInfo | None:
    """The dataset that exists in a folder, or None if there is none (or `out` is not a folder).

    Raises CorruptShard for a dataset.json that is damaged.
    """
    path = Path(out).expanduser() / DATASET_FILE
    if "://" in out or not path.is_file():
        return None
    return DatasetInfo.from_bytes(path.read_bytes(), str(path))


def _agreed(question: str) -> bool:
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def require_writable(out: str) -> None:
    """Raise UsageError unless `out` is a folder that can be made or written, or a URI that can be written."""
    if "://" in out:
        target_of(out)
        return
    path = Path(out).expanduser().absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir():
        raise UsageError(f"--out {out}: {existing} is a file; name a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"--out {out}: {existing} is not writable; name another folder or change its permissions")
