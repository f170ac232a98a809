"""Removes a whole dataset: first what makes its parts committed, last what makes it a dataset.

A removal that was interrupted is completed by the same call. Only files of a dataset are removed; a folder that holds
others stays.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from arwkv_store.dataset.garbage import require_no_capture
from arwkv_store.errors import NotFound, UsageError
from arwkv_store.format.heartbeat import is_heartbeat
from arwkv_store.format.layout import BESIDE_FILES, DATASET_FILE, SHARDS_FOLDER, part_of
from arwkv_store.format.summary import SUMMARY_FILE
from arwkv_store.places.commit import locked, storage_faults
from arwkv_store.places.object_folder import ObjectFolder
from arwkv_store.places.object_listing import listed

CONFIRMATION_DIGITS = 12


@dataclass(frozen=True)
class Removal:
    """What would be removed, in this order, and the word that confirms exactly this."""

    names: tuple[str, ...]
    parts: int
    size_bytes: int
    confirmation: str


def plan_removal(uri: str) -> Removal:
    """The files of the dataset. Raises NotFound where there is none, UsageError for a service or the Hub, TryAgain."""
    if uri.startswith(("http://", "https://", "hf://")):
        raise UsageError(f"{uri}: only datasets in folders and object stores can be removed")
    files = {found: size for found, size in _files(uri) if _rank(found) is not None}
    if DATASET_FILE not in files:
        raise NotFound(f"{uri}: no {DATASET_FILE} there; name a dataset's folder or URI")
    names = tuple(sorted(files, key=lambda name: (_rank(name), name)))
    parts = sum(_rank(name) == 1 for name in names)
    digest = hashlib.sha256(repr([(name, files[name]) for name in names]).encode()).hexdigest()
    return Removal(names, parts, sum(files.values()), digest[:CONFIRMATION_DIGITS])


def remove(uri: str, removal: Removal) -> Iterator[str]:
    """Remove the files; yields each name after it was removed. Raises UsageError, and TryAgain while a capture runs."""
    require_no_capture(uri)
    if "://" in uri:
        objects = ObjectFolder(uri)
        for name in removal.names:
            with contextlib.suppress(NotFound):
                objects.attempt(partial(objects.filesystem().rm_file, objects.path(name)), name)
            yield name
        return
    folder = Path(uri)
    with storage_faults(uri), locked(folder / DATASET_FILE):
        for name in removal.names:
            (folder / name).unlink(missing_ok=True)
            yield name
    for place in (folder / SHARDS_FOLDER, folder):
        with contextlib.suppress(OSError):  # something else is in it
            os.rmdir(place)


def _files(uri: str) -> Iterator[tuple[str, int]]:
    if "://" in uri:
        yield from ((found.name, found.size_bytes) for found in listed(ObjectFolder(uri)))
        return
    for place, prefix in ((Path(uri), ""), (Path(uri) / SHARDS_FOLDER, f"{SHARDS_FOLDER}/")):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(place) as entries:
            yield from (
                (prefix + entry.name, entry.stat(follow_symlinks=False).st_size)
                for entry in entries
                if not entry.is_dir(follow_symlinks=False)
            )


def _rank(name: str) -> int | None:
    """When a file is removed: the summary, manifests, data, files beside, dataset.json. None for one of no dataset."""
    folder, _, file = name.rpartition("/")
    if folder == SHARDS_FOLDER and (part := part_of(file)) is not None:
        return 1 if part[1] == "json" else 2
    if folder:
        return None
    if file == SUMMARY_FILE:
        return 0
    if file in BESIDE_FILES or is_heartbeat(file):
        return 3
    return 4 if file == DATASET_FILE else None
