"""Checks that a model's files are complete: interrupted downloads and clones without Git LFS leave broken files."""

import json
from pathlib import Path
from typing import Any

from arwkv_store.errors import NotFound, UsageError

LFS_POINTER = b"version https://git-lfs"
"""The first bytes of a file that Git LFS has not fetched."""
INDEX = "model.safetensors.index.json"
_MOST_HEADER_BYTES = 1 << 27


def read_json(what: str, path: Path) -> dict[str, Any]:
    """A model's JSON file. Raises UsageError if it is truncated, a Git LFS pointer, or not an object."""
    try:
        content = path.read_bytes()
        _require_fetched(what, path, content)
        document = json.loads(content)
        if not isinstance(document, dict):
            raise ValueError(f"{type(document).__name__}, not an object")
    except (ValueError, RecursionError, OSError) as error:
        raise UsageError(f"{what}: {path}: {error}; restore the file from the model's source") from error
    return document


def require_whole_weights(what: str, folder: Path) -> None:
    """Check a folder's safetensors files and their index, without reading the weights.

    Raises NotFound if a file of the index is missing, and UsageError for a Git LFS pointer or a truncated file.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if (folder / INDEX).is_file():
        files = set(read_json(what, folder / INDEX).get("weight_map", {}).values())
        missing = sorted(files - {path.name for path in paths})
        if missing:
            raise NotFound(
                f"{what}: no {missing[0]} in {folder} ({len(missing)} of the {len(files)} files that {INDEX} names are "
                "missing); fetch them"
            )
    for path in paths:
        _require_whole(what, path)


def _require_whole(what: str, path: Path) -> None:
    """The header determines the file's size: its own length in 8 bytes, itself, and the end of each tensor."""
    with path.open("rb") as file:
        head = file.read(len(LFS_POINTER))
        _require_fetched(what, path, head)
        header_bytes = int.from_bytes(head[:8], "little")
        file.seek(8)
        header = file.read(min(header_bytes, _MOST_HEADER_BYTES))
    try:
        tensors = [about for name, about in json.loads(header).items() if name != "__metadata__"]
        expected = 8 + header_bytes + max((about["data_offsets"][1] for about in tensors), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        expected = -1
    size = path.stat().st_size
    if size != expected:
        raise UsageError(f"{what}: {path} is not whole ({size:,} bytes); fetch it again")


def _require_fetched(what: str, path: Path, content: bytes) -> None:
    if content.startswith(LFS_POINTER):
        raise UsageError(f'{what}: {path} is a Git LFS pointer, not the file; fetch it with "git lfs pull"')
