"""Checks that a disk has room for a file before it is fetched."""

import shutil
from pathlib import Path

from arwkv_store.errors import TryAgain


def require_room(folder: Path, size_bytes: int, way_out: str) -> None:
    """Raise TryAgain with `way_out`, unless `folder` has room for this many bytes."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < size_bytes:
        raise TryAgain(f"{folder}: {size_bytes} bytes are needed there, {free_bytes} are free; {way_out}")
