"""The hash of a checkpoint's weights, computed once: a start need not read 15 GB again, nor each of eight processes.

It is kept in the cache's folder (`ARWKV_CACHE`, default ~/.cache/arwkv) under the place, size, inode and times of every
file, so a changed file is hashed again.
"""

import fcntl
import os
from pathlib import Path

import xxhash

from arwkv_store.format.weights import hash_of_weights
from arwkv_store.places.cache import DEFAULT_FOLDER

LEAST_BYTES = 64 << 20
"""Smaller checkpoints are hashed in less time than a file is written."""


def remembered_hash_of_weights(folder: Path) -> str:
    """`hash_of_weights` of a folder, from memory if no file has changed since; computed by one process at a time."""
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    if sum(file.stat().st_size for file in files) < LEAST_BYTES:
        return hash_of_weights(folder)
    kept = Path(os.environ.get("ARWKV_CACHE") or DEFAULT_FOLDER).expanduser() / "weights" / _state_of(files)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        file = kept.open("a+")
    except OSError:  # a cache that cannot be written is no reason to fail
        return hash_of_weights(folder)
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        found = file.read()
        if len(found) != 32:
            found = hash_of_weights(folder)
            file.truncate(0)
            file.write(found)
    return found


def _state_of(files: list[Path]) -> str:
    states = [(str(file.resolve()), file.stat()) for file in sorted(files)]
    return xxhash.xxh3_128_hexdigest(
        "\n".join(
            f"{name} {state.st_size} {state.st_ino} {state.st_mtime_ns} {state.st_ctime_ns}" for name, state in states
        ).encode()
    )
