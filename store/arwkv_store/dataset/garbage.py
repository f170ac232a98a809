"""Finds and removes files that no manifest names: what writers that died left behind.

A file that a manifest names is never removed. In a folder, the lock that publishing takes keeps commits away meanwhile.
An object store has no lock. There an object is first copied aside, and brought back if a manifest names it after it was
removed; a copy that a killed process left is brought back or removed by the next run.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from arwkv_store.errors import ArwkvError, NotFound, TryAgain, UsageError
from arwkv_store.format.heartbeat import Heartbeat, is_heartbeat
from arwkv_store.format.layout import DATASET_FILE, SHARDS_FOLDER, manifest_name, part_of
from arwkv_store.format.manifest import ShardManifest
from arwkv_store.format.schema import DatasetInfo
from arwkv_store.places.cache import FileCache
from arwkv_store.places.commit import TEMPORARY_PREFIX, locked, storage_faults, sync_folder
from arwkv_store.places.object_folder import ObjectFolder
from arwkv_store.places.object_listing import Listed, listed
from arwkv_store.places.source import source_of

ASIDE = "collected"
"""Folder of the copies of objects that are being removed."""


NamedBy = Callable[[int], set[str] | None]
"""The names of the files in a part's manifest: none if the part has no manifest, None if that cannot be told."""


@dataclass(frozen=True)
class Garbage:
    """A file below the dataset's folder that may be removed, and why."""

    name: str
    size_bytes: int
    why: str


def find_garbage(uri: str, older_than_s: float) -> list[Garbage]:
    """Files of dead writers, and data files that no manifest names, last written at least `older_than_s` ago.

    Files with names of other forms, and those of a part whose manifest cannot be read, are not looked at. Raises
    NotFound where there is no dataset, TryAgain while a capture runs in an object store, UsageError.
    """
    if uri.startswith(("http://", "https://", "hf://")):
        raise UsageError(f"{uri}: garbage is collected in folders and object stores; name one")
    DatasetInfo.from_bytes(source_of(uri, FileCache.of(None, None)).dataset_json(), f"{uri}/{DATASET_FILE}")
    before_s = time.time() - older_than_s
    if "://" in uri:
        folder = ObjectFolder(uri)
        require_no_capture(uri)
        return list(_unnamed(listed(folder), partial(_named_objects, folder), before_s))
    return [
        *_dead_temporaries(Path(uri), before_s),
        *_unnamed(_files(Path(uri)), partial(_named_files, Path(uri)), before_s),
    ]


def collect(uri: str, older_than_s: float) -> Iterator[Garbage]:
    """Remove what `find_garbage` finds; yields each file after it was removed. Raises as it does."""
    if "://" not in uri:
        if not (Path(uri) / DATASET_FILE).is_file():
            raise NotFound(f"{uri}: no {DATASET_FILE} there; name a dataset's folder or URI")
        with storage_faults(uri), locked(Path(uri) / DATASET_FILE):
            for garbage in find_garbage(uri, older_than_s):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(Path(uri) / garbage.name)
                yield garbage
            sync_folder(Path(uri) / SHARDS_FOLDER)
        return
    folder = ObjectFolder(uri)
    _settle(folder)
    for garbage in find_garbage(uri, older_than_s):
        _set_aside(folder, garbage.name)
        yield garbage


def _files(folder: Path) -> Iterator[Listed]:
    """The files of the shards' folder, parts together."""
    shards = folder / SHARDS_FOLDER
    names = sorted(os.listdir(shards)) if shards.is_dir() else []
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            status = (shards / name).lstat()
            yield Listed(f"{SHARDS_FOLDER}/{name}", status.st_size, status.st_mtime, "")


def _unnamed(files: Iterable[Listed], named_by: NamedBy, before_s: float) -> Iterator[Garbage]:
    """Data files of parts that their part's manifest does not name."""
    known: tuple[int, set[str] | None] = (-1, None)
    for file in files:
        folder, _, name = file.name.rpartition("/")
        part = part_of(name) if folder == SHARDS_FOLDER else None
        if part is None or part[1] == "json" or file.modified_s > before_s:
            continue
        if known[0] != part[0]:
            known = (part[0], named_by(part[0]))
        if known[1] is not None and name not in known[1]:
            why = "its part's manifest names another file" if known[1] else "its part was not committed"
            yield Garbage(file.name, file.size_bytes, why)


def _names(raw: bytes, part: int) -> set[str] | None:
    try:
        return {file.name for file in ShardManifest.from_bytes(raw, manifest_name(part)).files.values()}
    except ArwkvError:
        return None


def _named_files(folder: Path, part: int) -> set[str] | None:
    try:
        return _names((folder / SHARDS_FOLDER / manifest_name(part)).read_bytes(), part)
    except FileNotFoundError:
        return set()
    except OSError:
        return None


def _named_objects(folder: ObjectFolder, part: int) -> set[str] | None:
    try:
        return _names(folder.read(f"{SHARDS_FOLDER}/{manifest_name(part)}"), part)
    except NotFound:
        return set()


def _dead_temporaries(folder: Path, before_s: float) -> Iterator[Garbage]:
    for path in sorted([*folder.glob(f"{TEMPORARY_PREFIX}*"), *(folder / SHARDS_FOLDER).glob(f"{TEMPORARY_PREFIX}*")]):
        # A living writer holds the lock of its file. Open for writing: NFS locks for writing only what is opened so.
        with contextlib.suppress(OSError), open(path, "rb+") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(file.fileno())
            if status.st_mtime <= before_s:
                yield Garbage(str(path.relative_to(folder)), status.st_size, "its writer died")


def require_no_capture(uri: str) -> None:
    """Raise TryAgain if a process says that it is making the dataset."""
    for raw in _heartbeats(uri):
        beat = Heartbeat.from_bytes(raw)
        if beat is not None and beat.state_at() == "running":
            where = beat.host or "another machine"
            raise TryAgain(f"{uri}: a capture is running on {where}; run the same command again when it has ended")


def _heartbeats(uri: str) -> Iterator[bytes]:
    if "://" in uri:
        folder = ObjectFolder(uri)
        yield from (folder.read(found.name) for found in listed(folder, "heartbeat-") if is_heartbeat(found.name))
    elif Path(uri).is_dir():
        yield from ((Path(uri) / name).read_bytes() for name in os.listdir(uri) if is_heartbeat(name))


def _set_aside(folder: ObjectFolder, name: str) -> None:
    """Remove an object, unless a manifest names it by then."""
    filesystem, copy = folder.filesystem(), f"{ASIDE}/{name.rpartition('/')[2]}"
    folder.attempt(partial(filesystem.cp_file, folder.path(name), folder.path(copy)), name)
    folder.attempt(partial(filesystem.rm_file, folder.path(name)), name)
    _settle_one(folder, copy)


def _settle(folder: ObjectFolder) -> None:
    """Finish what a run that was killed had begun."""
    for found in listed(folder, f"{ASIDE}/"):
        _settle_one(folder, found.name)


def _settle_one(folder: ObjectFolder, copy: str) -> None:
    """Bring an object back if a manifest names it; then remove its copy."""
    filesystem, name = folder.filesystem(), copy.rpartition("/")[2]
    part = part_of(name)
    if part is None:
        return
    named = _named_objects(folder, part[0])
    original = f"{SHARDS_FOLDER}/{name}"
    if named is None or name in named:
        if not folder.attempt(partial(folder.exists, original), original):
            folder.attempt(partial(filesystem.cp_file, folder.path(copy), folder.path(original)), original)
        if named is None:
            return
    folder.attempt(partial(filesystem.rm_file, folder.path(copy)), copy)
