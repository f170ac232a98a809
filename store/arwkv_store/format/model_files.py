"""Whether a model's files are whole, as interrupted downloads and clones without Git LFS leave them not to be."""

import json
from pathlib import Path
from typing import Any

from arwkv_store.errors import NotFound, UsageError

LFS_POINTER = b"version https://git-lfs"
"""How a file begins that Git LFS has yet to fetch."""
INDEX = "model.safetensors.index.json"
_MOST_HEADER_BYTES = 1 << 27


def read_json(what: str, path: Path) -> dict[str, Any]:
    """A model's JSON file. Raises UsageError for one that is cut, a Git LFS pointer, or no object."""
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
    """Look at a folder's safetensors files and their index, not at the weights themselves.

    Raises NotFound where a file that the index names is not there, UsageError for one that is a Git LFS pointer or ends
    too early.
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
    """The header says how long the file is: its own length in 8 bytes, itself, then where each tensor ends."""
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
