"""Checks a whole dataset, part by part, and moves damaged parts aside."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from arwkv_store.arrow.arrow_file import ArrowFile
from arwkv_store.commands.progress import followed
from arwkv_store.dataset.index import manifest_of
from arwkv_store.dataset.shard import Shard
from arwkv_store.errors import CorruptShard, UnsupportedVersion, UsageError
from arwkv_store.format.columns import heavy_columns
from arwkv_store.format.layout import DATASET_FILE, SHARDS_FOLDER, manifest_name, manifest_uri, part_stem
from arwkv_store.format.schema import DatasetInfo
from arwkv_store.places.cache import FileCache
from arwkv_store.places.commit import locked, storage_faults, sync_folder
from arwkv_store.places.source import Source, source_of

SET_ASIDE_FOLDER = "damaged"
MAX_SCRATCH_BYTES = 1 << 40
"""No limit: only the files of one part are there at a time."""


@dataclass
class Verdict:
    """The results so far. `damaged` maps a part to its problem; `newer` maps a part whose format version this release
    does not read to its message. Known only at the end: `missing`, planned parts that are not committed, and
    `unclaimed`, data files of a folder without a manifest.
    """

    parts: int = 0
    samples: int = 0
    tokens: int = 0
    size_bytes: int = 0
    damaged: dict[int, str] = field(default_factory=dict)
    newer: dict[int, str] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    unclaimed: list[str] = field(default_factory=list)
    set_aside: list[int] = field(default_factory=list)

    @property
    def standing(self) -> list[int]:
        """Damaged parts that are still in place."""
        return [part for part in self.damaged if part not in self.set_aside]


def verify_with_progress(uri: str, *, deep: bool, repair: bool) -> Verdict:
    """`verify_dataset` to its end, with a bar."""
    verdicts = verify_dataset(uri, deep=deep, repair=repair)
    return followed("verify", verdicts, lambda verdict: f"{verdict.parts} parts, {len(verdict.damaged)} damaged")


def verify_dataset(uri: str, *, deep: bool = False, repair: bool = False) -> Iterator[Verdict]:
    """Check every byte; yields the growing verdict once at the start, after each part, and at the end.

    `deep` also compares whole-file SHA-256 and decodes every cell. `repair` moves the files of damaged parts to
    `damaged/`, next to `shards/`, so that the parts can be made again. Remote files are fetched again, to the system's
    temporary folder (TMPDIR). Raises the errors of `open_dataset` for dataset.json, and UsageError for `repair` of a
    remote dataset.
    """
    if repair and "://" in uri:
        raise UsageError(f"{uri}: only the parts of a folder can be repaired; repair the dataset at its source")
    # The source is to be checked, so earlier copies are not used, and new copies are removed after the check.
    with tempfile.TemporaryDirectory(prefix="arwkv-verify-") as scratch:
        source = source_of(uri, FileCache(Path(scratch), MAX_SCRATCH_BYTES))
        raw = source.dataset_json()
        info = DatasetInfo.from_bytes(raw, f"{source.uri}/{DATASET_FILE}")
        dataset_hash = hashlib.sha256(raw).hexdigest()
        verdict, committed = Verdict(), set[int]()
        yield verdict
        for part, manifest in source.manifests():
            verdict.parts += 1
            committed.add(part)
            try:
                _verify_part(source, info, part, manifest, dataset_hash, deep, verdict)
            except UnsupportedVersion as error:
                verdict.newer[part] = str(error)
            except CorruptShard as error:
                verdict.damaged[part] = str(error)
                if repair:
                    set_aside(Path(uri), part)
                    verdict.set_aside.append(part)
            yield verdict
        # A dataset that grows lacks what was set aside before its last part.
        verdict.missing = sorted(set(range(info.corpus.parts or max(committed, default=-1) + 1)) - committed)
        verdict.unclaimed = [] if "://" in uri else _unclaimed(Path(uri), committed)
        yield verdict


def _unclaimed(folder: Path, committed: set[int]) -> list[str]:
    claimed = {part_stem(part) for part in committed}
    names = [path.name for path in (folder / SHARDS_FOLDER).glob("part-*.arrow")]
    return sorted(name for name in names if name.split(".", 1)[0] not in claimed)


def set_aside(folder: Path, part: int) -> None:
    """Move a part's files to `damaged/`, its manifest first, so that the part is no longer committed."""
    shards, aside = folder / SHARDS_FOLDER, folder / SET_ASIDE_FOLDER
    with storage_faults(str(aside)), locked(folder / DATASET_FILE):
        aside.mkdir(exist_ok=True)
        data = (path.name for path in sorted(shards.glob(f"{part_stem(part)}.*arrow")))
        for name in (manifest_name(part), *data):
            with contextlib.suppress(FileNotFoundError):
                os.replace(shards / name, aside / name)
                sync_folder(shards)


def _verify_part(
    source: Source, info: DatasetInfo, part: int, raw: bytes, dataset_hash: str, deep: bool, verdict: Verdict
) -> None:
    where = manifest_uri(source.uri, part)
    manifest = manifest_of(part, raw, dataset_hash, where)
    try:
        for kind, file in manifest.files.items():
            opened = ArrowFile(source.data_path(part, kind, file), file, verify=True)
            opened.verify_all()
            if deep:
                opened.verify_sha256()
        if deep:
            shard = Shard(source, manifest, heavy_columns(info), verify=True)
            for row in range(manifest.rows):
                shard.sample(row)
    finally:
        for file in manifest.files.values():
            source.forget(file)
    verdict.samples += manifest.rows
    verdict.tokens += manifest.tokens
    verdict.size_bytes += manifest.size_bytes
