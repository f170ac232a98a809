"""Copies a dataset to another place, part by part, and verifies each part."""

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from arwkv_store.commands.progress import followed
from arwkv_store.dataset.index import manifest_of
from arwkv_store.dataset.summarize import summarize
from arwkv_store.errors import ConfigurationDiffers, CorruptShard
from arwkv_store.format.file_hash import pieces_of, sha256_of
from arwkv_store.format.layout import CORPUS_FILE, DATASET_FILE, manifest_uri
from arwkv_store.format.manifest import FileInfo, ShardManifest
from arwkv_store.format.schema import DatasetInfo, require_same
from arwkv_store.places.cache import FileCache
from arwkv_store.places.commit import storage_faults, write_all
from arwkv_store.places.room import require_room
from arwkv_store.places.source import Source, source_of
from arwkv_store.places.target import Target, target_of

PARTS_TOGETHER = 64
"""Parts per commit, for a target that limits the number of commits."""


@dataclass
class Copied:
    """What a copy has done so far."""

    parts_present_before: int
    parts: int = 0
    tokens: int = 0
    size_bytes: int = 0


def copy_dataset(source_uri: str, target_uri: str) -> Iterator[Copied]:
    """Copy the committed parts that the target lacks, data first and manifest last; yields after each part.

    The same call continues an interrupted copy, and copies parts that were committed since. Raises
    ConfigurationDiffers if the target holds another dataset, CorruptShard if bytes at the source are damaged (that part
    is not committed), NotFound, UsageError, TryAgain.
    """
    source, target = source_of(source_uri, FileCache.of(None, None)), target_of(target_uri)
    raw = source.dataset_json()
    info = DatasetInfo.from_bytes(raw, f"{source.uri}/{DATASET_FILE}")
    there = target.begin(raw)
    if there != raw:
        where = f"{target.uri}/{DATASET_FILE}"
        other = DatasetInfo.from_bytes(there, where)
        require_same(other, info, where)
        raise ConfigurationDiffers(f"{where}: another run made it ({other.created_by}); name another folder")
    beside = source.beside()
    length = {CORPUS_FILE} if info.corpus.grows else set()  # it says how long the dataset is: after the parts
    for name in beside.keys() - length:
        target.put_beside(name, beside[name])
    present, dataset_hash = target.committed_parts(), hashlib.sha256(raw).hexdigest()
    copied = Copied(len(present))
    missing = ((part, raw_manifest) for part, raw_manifest in source.manifests() if part not in present)
    while some := list(itertools.islice(missing, PARTS_TOGETHER)):
        with target.together():
            for part, raw_manifest in some:
                manifest = manifest_of(part, raw_manifest, dataset_hash, manifest_uri(source.uri, part))
                _copy_part(source, target, manifest)
                copied.parts += 1
                copied.tokens += manifest.tokens
                copied.size_bytes += manifest.size_bytes
                yield copied
    for name in beside.keys() & length:
        target.replace_beside(name, beside[name])
    if copied.parts and target.summarized:
        summarize(target.uri)
    yield copied


def copy_with_progress(source_uri: str, target_uri: str) -> Copied:
    """`copy_dataset` to its end, with a bar."""
    return followed("copy", copy_dataset(source_uri, target_uri), lambda copied: f"{copied.parts} parts")


def _copy_part(source: Source, target: Target, manifest: ShardManifest) -> None:
    with storage_faults(target.uri), ExitStack() as open_files:
        data: dict[str, IO[bytes]] = {}
        for kind, file in manifest.files.items():
            data[kind] = open_files.enter_context(target.temporary_file())
            try:
                _copy_file(source.data_path(manifest.part, kind, file), file, data[kind])
            except CorruptShard:
                # A damaged copy in the cache does not mean that the source is damaged.
                if not source.forget(file):
                    raise
                _copy_file(source.data_path(manifest.part, kind, file), file, data[kind])
        target.publish(target.placed(manifest), data)


def _copy_file(path: Path, file: FileInfo, to: IO[bytes]) -> None:
    to.seek(0)
    to.truncate()
    require_room(
        Path(to.name).parent, file.size_bytes, "free disk space; parts for an object store pass through TMPDIR"
    )
    try:
        with open(path, "rb", buffering=0) as content:
            found = sha256_of(_written(pieces_of(content), to))
    except FileNotFoundError as error:
        raise CorruptShard(f"{path}: missing, although its manifest exists; run store verify --repair") from error
    if found != file.sha256:
        raise CorruptShard(
            f"{path}: SHA-256 {found}, committed as {file.sha256}; run store verify --repair at the source"
        )


def _written(pieces: Iterator[memoryview], to: IO[bytes]) -> Iterator[memoryview]:
    for piece in pieces:
        write_all(to, piece)
        yield piece
