"""Writes files so that they are complete on the disk, or unchanged."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arwkv_store.places.commit import sync_folder


def write_json(file: Path, document: Mapping[str, Any]) -> None:
    """Write a file that is complete or absent."""
    replace_text(file, json.dumps(document, indent=2, sort_keys=True) + "\n")


def replace_text(file: Path, text: str) -> None:
    """Write a file that is complete or unchanged."""
    fresh = file.with_name(file.name + ".new")
    with fresh.open("w") as opened:
        opened.write(text)
    put_in_place(fresh, file)


def put_in_place(fresh: Path, file: Path) -> None:
    """Rename a temporary file to `file`, once it is on the disk."""
    with fresh.open("rb") as opened:
        os.fsync(opened.fileno())
    os.replace(fresh, file)
    sync_folder(file.parent)


def sync_files(folder: Path) -> None:
    """Sync the files of a folder, which other code wrote, and their names to the disk."""
    for file in filter(Path.is_file, folder.iterdir()):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    sync_folder(folder)
    sync_folder(folder.parent)
