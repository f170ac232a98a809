"""What the store has committed, as the index takes it in: verified documents, or the reason why they cannot be used."""

import errno
import hashlib
import logging
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from arwkv_api.kept import Kept
from arwkv_api.roots.place import Content, Place, ShardFiles
from arwkv_store.errors import ArwkvError, CorruptShard, NotFound, TryAgain
from arwkv_store.format.layout import CORPUS_FILE, DATASET_FILE, manifest_name
from arwkv_store.format.manifest import FileInfo, ShardManifest
from arwkv_store.format.schema import DatasetInfo
from arwkv_store.format.seal import MAX_DOCUMENT_BYTES

log = logging.getLogger("arwkv_api.manifests")

# What the system says of a file that is not there, or is none. Whatever else it says (too many open files, a stale
# handle, a disk or server that is away) may pass, and tells nothing of the bytes.
NO_FILE = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO)
# What a BIGINT column keeps.
LARGEST_INTEGER = (1 << 63) - 1
KEPT_MANIFESTS_BYTES = 64 << 20
# What a parsed manifest and its text take in memory for each byte of the text, as measured.
MEMORY_PER_BYTE = 8


class ShardState(StrEnum):
    """`committed` is served; `missing` had a manifest and lost it; `corrupt` fails its own manifest."""

    COMMITTED = "committed"
    MISSING = "missing"
    CORRUPT = "corrupt"


@dataclass(frozen=True)
class Identity:
    """A dataset.json: the raw bytes, its place's mark of them, and what they say."""

    raw: bytes
    mark_ns: int
    info: DatasetInfo

    @property
    def dataset_hash(self) -> str:
        """The hash by which the shards' manifests name their dataset."""
        return hashlib.sha256(self.raw).hexdigest()


@dataclass(frozen=True)
class Shard:
    """One part as found: its manifest's raw bytes, and the parsed manifest unless that cannot be used."""

    files: ShardFiles
    raw: bytes
    manifest: ShardManifest | None
    problem: str | None

    @property
    def state(self) -> ShardState:
        return ShardState.COMMITTED if self.problem is None else ShardState.CORRUPT


def read_identity(place: Place) -> Identity:
    """Read and verify a dataset's identity. Raises OSError, CorruptShard, UnsupportedVersion or TryAgain."""
    mark_ns = place.identity_mark()
    raw = place.read(DATASET_FILE, MAX_DOCUMENT_BYTES)
    where = f"{place.name}/{DATASET_FILE}"
    info = DatasetInfo.from_bytes(raw, where)
    if info.corpus.parts > LARGEST_INTEGER:
        raise CorruptShard(f"{where}: corpus.parts {info.corpus.parts} is not below 2^63; make the dataset again")
    return Identity(raw, mark_ns, info)


def read_corpus_report(place: Place) -> dict[str, Any] | None:
    """The producer's report of the corpus, next to dataset.json; None if there is none."""
    try:
        report = from_json(place.read(CORPUS_FILE, MAX_DOCUMENT_BYTES), allow_inf_nan=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s: %s: %s; the page shows no report", place.name, CORPUS_FILE, error)
        return None
    return report if isinstance(report, dict) else None


def read_shard(place: Place, files: ShardFiles, dataset_hash: str) -> Shard:
    """Read and verify one manifest, and that its data files are there in full size; a bad shard is an answer.

    Raises TryAgain where a file cannot be read just now.
    """
    raw = b""
    where = manifest_name(files.part)
    try:
        raw = place.manifest(files.part, MAX_DOCUMENT_BYTES)
        manifest = ShardManifest.from_bytes(raw, where)
        _require_same_dataset(manifest, files.part, dataset_hash, where)
        for kind in manifest.files:
            _require_full_size(place, files, manifest, kind)
    except TryAgain:
        raise
    except OSError as error:
        return Shard(files, raw, None, str(unreadable(error, where)))
    except ArwkvError as error:
        return Shard(files, raw, None, str(error))
    return Shard(files, raw, manifest, None)


def parse_manifest(raw: bytes) -> ShardManifest:
    """A manifest that was verified when it was indexed."""
    return _PARSED.of(raw, lambda: (ShardManifest.from_bytes(raw, "index"), len(raw)))[0]


_PARSED = Kept[tuple[ShardManifest, int]](KEPT_MANIFESTS_BYTES, lambda kept: MEMORY_PER_BYTE * kept[1])


def open_data(place: Place, manifest: ShardManifest, kind: str) -> tuple[Content, FileInfo]:
    """The part's file `rows` or `hidden`, open, which is of the size that the manifest says.

    Raises NotFound where the part has no such file, CorruptShard where it is gone or has another size, and TryAgain
    where it cannot be opened just now.
    """
    info = data_file(manifest, kind)
    try:
        content = place.open_data(info.name)
    except OSError as error:
        raise unreadable(error, info.name) from error
    if content.size_bytes != info.size_bytes:
        content.close()
        raise CorruptShard(
            f"{info.name}: {content.size_bytes} bytes, {info.size_bytes} were committed; make the part again"
        )
    return content, info


def data_file(manifest: ShardManifest, kind: str) -> FileInfo:
    """The part's file `rows` or `hidden`. Raises NotFound where it has none."""
    info = manifest.files.get(kind)
    if info is None:
        raise NotFound(f"file={kind!r}: part {manifest.part} has only {', '.join(manifest.files)}")
    return info


def _require_same_dataset(manifest: ShardManifest, part: int, dataset_hash: str, where: str) -> None:
    if manifest.part != part:
        raise CorruptShard(f"{where}: it is the manifest of part {manifest.part} and was renamed; make the part again")
    if manifest.dataset_hash != dataset_hash:
        raise CorruptShard(f"{where}: belongs to dataset {manifest.dataset_hash[:12]}, this is {dataset_hash[:12]}")
    numbers = (manifest.rows, manifest.tokens, manifest.first_sample_id, manifest.last_sample_id, manifest.size_bytes)
    if not all(0 <= number <= LARGEST_INTEGER for number in numbers):
        raise CorruptShard(f"{where}: counts {numbers} are not all between 0 and 2^63; make the part again")


def _require_full_size(place: Place, files: ShardFiles, manifest: ShardManifest, kind: str) -> None:
    info = manifest.files[kind]
    size_bytes = place.size_bytes(files, info.name)
    if size_bytes != info.size_bytes:
        raise CorruptShard(f"{info.name}: {size_bytes} bytes there, {info.size_bytes} committed; make the part again")


def one_line(error: Exception) -> str:
    """An expected error in words that name no folder outside the dataset."""
    if isinstance(error, OSError) and error.strerror:
        return f"{Path(os.fsdecode(error.filename)).name}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def unreadable(error: OSError, name: str) -> CorruptShard:
    """What is wrong with file `name`, or the one that the error names. Raises TryAgain where the error may pass."""
    name = Path(os.fsdecode(error.filename)).name if error.filename else name
    reason = error.strerror or str(error).removeprefix(f"{name}: ")
    if error.errno not in NO_FILE:
        raise TryAgain(
            f"{name}: {reason}; try again, and check the disk or the service's limits if this repeats"
        ) from error
    return CorruptShard(f"{name}: {reason}; make the part again")
