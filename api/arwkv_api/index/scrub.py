"""Verifies the checksums of shards' files at a steady pace, to find changed bytes behind unchanged names and sizes."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, Row, select
from sqlalchemy.orm import Session

from arwkv_api.index.indexing import refresh_totals, store_shards
from arwkv_api.index.lease import LeaseLost, Renewal, lease
from arwkv_api.index.metrics import VERIFICATIONS, VERIFIED_BYTES
from arwkv_api.index.orm import DatasetRow, ManifestRow, ShardRow
from arwkv_api.index.pace import HOLDS_S, Pace
from arwkv_api.roots.finding import place_of
from arwkv_api.roots.manifests import ShardState, open_data, parse_manifest, read_shard, unreadable
from arwkv_api.roots.place import Content, Place
from arwkv_store.errors import CorruptShard, NotFound, TryAgain
from arwkv_store.format.file_hash import sha256_of
from arwkv_store.format.manifest import ShardManifest

log = logging.getLogger("arwkv_api.verify")

CHUNK_BYTES = 4 << 20
# A file counts as this many bytes at least: opening many small ones takes time, too.
LEAST_BYTES = 1 << 16
# Verdicts are written down after so many shards, or so long.
BATCH_SHARDS, BATCH_S = 64, 2.0
# How long to wait for a scan of the same root before its verdicts are written.
SCAN_WAIT_S = 10.0

Read = Callable[[int], None]
"""Called with the number of bytes after each read."""


@dataclass(frozen=True)
class Verdict:
    """The problem of a shard, None for a good one. It is valid for files with this fingerprint."""

    dataset_id: int
    shard_id: int
    fingerprint: str
    fault: str | None


def fault_of(place: Place, manifest: ShardManifest, read: Read) -> str | None:
    """The problem of the part's files, after reading and hashing every byte; None if there is none.

    Raises TryAgain if a file cannot be read now, which does not mean that its bytes are wrong.
    """
    try:
        for kind in manifest.files:
            _require_committed_bytes(place, manifest, kind, read)
    except CorruptShard as error:
        return str(error)
    return None


def verify_shard(engine: Engine, dataset: DatasetRow, part: int) -> None:
    """Verify one shard now, manifest and data, regardless of earlier results, and store the verdict.

    Raises NotFound where its manifest is gone, and TryAgain where a file cannot be read just now or while a scan of its
    root is running.
    """
    place = place_of(dataset.folder)
    try:
        files = place.part_files(part)
    except OSError as error:
        raise unreadable(error, f"part {part}") from error
    if files is None:
        raise NotFound(f"dataset {dataset.name!r}: part {part}: its manifest is gone; make the part again")
    found = read_shard(place, files, dataset.dataset_hash)
    fault = found.problem if found.manifest is None else fault_of(place, found.manifest, lambda _size: None)
    with lease(engine, dataset.root, SCAN_WAIT_S) as held:
        if held is None:
            raise TryAgain(f"dataset {dataset.name!r}: its root is being scanned; try again in a moment")
        with Session(engine) as session, session.begin():
            held.renew(session)
            this = (ShardRow.dataset_id == dataset.id, ShardRow.part == part)
            if session.execute(select(ShardRow.fingerprint, ShardRow.state).where(*this)).first() != (
                files.fingerprint,
                ShardState.COMMITTED,
            ):
                store_shards(session, dataset.id, [found], replaced=True)
            shard_id = session.execute(select(ShardRow.id).where(*this)).scalar_one()
            _record_dataset(session, dataset.id, [Verdict(dataset.id, shard_id, files.fingerprint, fault)])


def verify_due(engine: Engine, root: str, pace: Pace, passed: int = 0) -> tuple[bool, int]:
    """Verify some shards under `root`; those never verified come first.

    Whether more may be due here and now, and how many shards could not be read just now: they stay at the head of the
    order, so that the next call of this pass is given their number as `passed`.
    """
    if not _due(engine, root, passed, limit=1):
        return False, 0
    with lease(engine, f"verify {root}", 0.0) as held:
        if held is None:
            return False, 0
        verdicts: list[Verdict] = []
        reading = _Reading(pace, Renewal(engine, held))
        for shard in _due(engine, root, passed, limit=BATCH_SHARDS):
            try:
                fault = fault_of(place_of(shard.folder), parse_manifest(shard.raw), reading)
                verdicts.append(Verdict(shard.dataset_id, shard.id, shard.fingerprint, fault))
            except LeaseLost:
                raise
            except TryAgain as error:
                log.warning("%s: %s", place_of(shard.folder).name, error)
                passed += 1
            if pace.stopping.is_set():
                return False, 0
            if time.monotonic() - reading.began_s > BATCH_S:
                break
        return record(engine, root, verdicts), passed


@dataclass
class _Reading:
    """Keeps the pace and the lease. Raises LeaseLost."""

    pace: Pace
    renew: Renewal
    began_s: float = field(default_factory=time.monotonic, init=False)

    def __call__(self, size_bytes: int) -> None:
        self.pace(size_bytes)
        self.renew()


def _require_committed_bytes(place: Place, manifest: ShardManifest, kind: str, read: Read) -> None:
    content, info = open_data(place, manifest, kind)
    read(max(0, LEAST_BYTES - info.size_bytes))
    try:
        found = sha256_of(_pieces(content, read))
    except OSError as error:
        raise unreadable(error, info.name) from error
    finally:
        content.close()
    if found != info.sha256:
        raise CorruptShard(f"{info.name}: SHA-256 {found[:16]}…, committed as {info.sha256[:16]}…; make the part again")


def _pieces(content: Content, read: Read) -> Iterator[memoryview]:
    for start in range(0, content.size_bytes, CHUNK_BYTES):
        piece = content.read(start, min(CHUNK_BYTES, content.size_bytes - start))
        VERIFIED_BYTES.inc(len(piece))
        read(len(piece))
        yield memoryview(piece)


def _due(engine: Engine, root: str, passed: int, limit: int) -> list[Row[Any]]:
    """Committed shards of `root` that were not verified lately, the longest unseen first, after `passed` of them."""
    query = (
        select(ShardRow.id, ShardRow.dataset_id, ShardRow.fingerprint, DatasetRow.folder, ManifestRow.raw)
        .join(DatasetRow, DatasetRow.id == ShardRow.dataset_id)
        .join(ManifestRow, ManifestRow.shard_id == ShardRow.id)
        .where(DatasetRow.root == root, DatasetRow.state == "ready", ShardRow.state == ShardState.COMMITTED)
        .where(ShardRow.verified_at_s < time.time() - HOLDS_S)
        .order_by(ShardRow.verified_at_s)
        .offset(passed)
        .limit(limit)
    )
    with Session(engine) as session:
        return list(session.execute(query))


def record(engine: Engine, root: str, verdicts: Sequence[Verdict]) -> bool:
    """Store verdicts; False while a scan of the root is running."""
    with lease(engine, root, SCAN_WAIT_S) as held:
        if held is None:
            return False
        with Session(engine) as session, session.begin():
            held.renew(session)
            for dataset_id in {verdict.dataset_id for verdict in verdicts}:
                _record_dataset(session, dataset_id, [v for v in verdicts if v.dataset_id == dataset_id])
    return True


def _record_dataset(session: Session, dataset_id: int, verdicts: Sequence[Verdict]) -> None:
    row, now, ill = session.get_one(DatasetRow, dataset_id), time.time(), False
    for verdict in verdicts:
        # A shard that was read again in the meantime has another fingerprint, and is verified again.
        shard = session.get(ShardRow, verdict.shard_id)
        if shard is None or shard.fingerprint != verdict.fingerprint:
            continue
        VERIFICATIONS.labels("corrupt" if verdict.fault else "sound").inc()
        row.verified_shards += not shard.verified_at_s
        shard.verified_at_s = now
        if verdict.fault:
            shard.state, shard.problem, ill = ShardState.CORRUPT, verdict.fault, True
            log.warning("%s: part %d: %s", row.name, shard.part, verdict.fault)
    row.revision += 1
    if ill:
        refresh_totals(session, dataset_id)
