"""What lies under the roots: dataset folders, their shards' names and fingerprints, and runs. Reads names, not data."""

import contextlib
import hashlib
import logging
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from arwkv_api.roots.place import ShardFiles
from arwkv_store.format.layout import DATASET_FILE, RUN_FILE, SHARDS_FOLDER, part_of, part_stem

log = logging.getLogger("arwkv_api.folders")

METRICS = RUN_FILE
NAME_LIMIT_CHARACTERS = 255
# How deep below a root a run's metrics may lie: ROOT/experiment/run/metrics.jsonl.
RUN_DEPTH = 3
# Listing pauses for others who wait for this process's interpreter: requests are answered by its other threads.
BREATH_FILES = 200
BREATH_S = 0.002

Item = TypeVar("Item")
# Ending, mode, size, time and inode: plain values, which the garbage collector does not visit again and again.
_File = tuple[str, int, int, int, int]


def is_servable_name(name: str) -> bool:
    """True for a folder name that can stand in a URL and in the index: printable text, not hidden."""
    return 0 < len(name) <= NAME_LIMIT_CHARACTERS and name.isprintable() and not name.startswith(".")


def local_folders(root: Path) -> Iterator[tuple[str, Path]]:
    """Name and folder of each dataset: `root` itself, or the folders in it that hold a dataset.json.

    Symbolic links are not followed; their targets can be added as roots.
    """
    if _is_file(root / DATASET_FILE):
        yield root.name, root
        return
    with os.scandir(root) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if (
                entry.is_dir(follow_symlinks=False)
                and is_servable_name(entry.name)
                and _is_file(Path(entry) / DATASET_FILE)
            ):
                yield entry.name, Path(entry)


def shard_files(folder: Path, meanwhile: Callable[[], None] = lambda: None) -> dict[int, ShardFiles]:
    """The parts of a dataset that have a manifest, by number. A dataset without its folder `shards` has none yet.

    `meanwhile` is called at each pause of a long listing.
    """
    found: dict[int, list[_File]] = {}
    shards = folder / SHARDS_FOLDER
    if shards.is_symlink() or not shards.is_dir():
        return {}
    with os.scandir(shards) as entries:
        for entry in _with_pauses(entries, meanwhile):
            if (named := part_of(entry.name)) is not None:
                try:
                    found.setdefault(named[0], []).append(_file(named[1], entry.stat(follow_symlinks=False)))
                except FileNotFoundError:
                    continue  # removed after the listing; the next look settles it
    parts = _with_pauses(found.items(), meanwhile)
    return {part: shard for part, files in parts if (shard := _shard(part, sorted(files))) is not None}


def _with_pauses(items: Iterable[Item], meanwhile: Callable[[], None]) -> Iterator[Item]:
    for number, item in enumerate(items):
        if number % BREATH_FILES == BREATH_FILES - 1:
            time.sleep(BREATH_S)
            meanwhile()
        yield item


def part_files(folder: Path, part: int) -> ShardFiles | None:
    """The same of one part alone; None where it has no manifest. Raises OSError where that cannot be told."""
    files = []
    for path in (folder / SHARDS_FOLDER).glob(f"{part_stem(part)}.*"):
        if (named := part_of(path.name)) is not None:
            with contextlib.suppress(FileNotFoundError):
                files.append(_file(named[1], path.lstat()))
    return None if (folder / SHARDS_FOLDER).is_symlink() else _shard(part, sorted(files))


def run_folders(roots: tuple[Path, ...]) -> dict[str, Path]:
    """Folders that hold a metrics.jsonl, by name: the path below their root, with `-` between its parts."""
    runs: dict[str, Path] = {}
    for root in roots:
        for folder in _folders_below(root, RUN_DEPTH):
            if _is_file(folder / METRICS):
                inner = folder.relative_to(root).parts
                runs.setdefault("-".join(inner) if inner else root.name, folder)
    return dict(sorted(runs.items()))


def _folders_below(folder: Path, depth: int) -> Iterator[Path]:
    yield folder
    if depth == 0 or _is_file(folder / DATASET_FILE):
        return
    try:
        with os.scandir(folder) as entries:
            below = [
                Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False) and is_servable_name(entry.name)
            ]
    except OSError as error:  # one folder that cannot be listed hides no run but its own
        log.info("%s: %s; no runs are looked for there", folder, error.strerror)
        return
    for inner in below:
        yield from _folders_below(inner, depth - 1)


def shards_time_ns(folder: Path) -> int:
    """The time of a dataset's shards folder; -2 where there is none."""
    try:
        return (folder / SHARDS_FOLDER).lstat().st_mtime_ns
    except OSError:
        return -2


def _file(kind: str, status: os.stat_result) -> _File:
    return kind, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino


def _shard(part: int, files: list[_File]) -> ShardFiles | None:
    manifest = next((file for file in files if file[0] == "json"), None)
    if manifest is None:
        return None
    fingerprint = hashlib.blake2b(repr(files).encode(), digest_size=16).hexdigest()
    return ShardFiles(part, manifest[3] / 1e9, fingerprint)


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False
