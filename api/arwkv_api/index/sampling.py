"""Verifies random regions of shards in object stores, within a budget of requests and bytes for each day.

A shard's manifest has a checksum for every region of its files. Reading one region finds a lost or truncated object at
once, and damage in proportion to the bytes that were read.
"""

import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass

import xxhash
from sqlalchemy import Engine, Row, func, select
from sqlalchemy.orm import Session

from arwkv_api.index.lease import BUSY_SHARE, due_in_s, lease
from arwkv_api.index.metrics import VERIFIED_BYTES
from arwkv_api.index.orm import DatasetRow, ManifestRow, ShardRow
from arwkv_api.index.scrub import Verdict, record
from arwkv_api.roots.finding import place_of
from arwkv_api.roots.manifests import ShardState, open_data, parse_manifest, unreadable
from arwkv_api.roots.place import Place
from arwkv_store.errors import CorruptShard
from arwkv_store.format.manifest import FileInfo, Region, ShardManifest

log = logging.getLogger("arwkv_api.sampling")

DAY_S = 86_400.0
# How often it is asked whether there is something to read.
LOOK_S = 1.0
PIECE_BYTES = 4 << 20
# Opening a file asks for its size.
REQUESTS_TO_OPEN = 1


@dataclass(frozen=True)
class Budget:
    """What may be spent on one root in a day."""

    requests: float
    size_bytes: float

    def pause_s(self, size_bytes: int) -> float:
        """Seconds after reading a region until the next, so that no day costs more."""
        return DAY_S * max(_requests(size_bytes) / self.requests, size_bytes / self.size_bytes)


def sample_region(engine: Engine, root: str, budget: Budget) -> float:
    """Verify one random region of a random shard under `root`, if that is due; returns the seconds until the next is.

    All workers, before and after a restart, share the budget: the lease remembers when the last region was paid for.
    Raises TryAgain where the store cannot be read just now.
    """
    key = f"sample {root}"
    if wait_s := due_in_s(engine, key):
        return wait_s
    with lease(engine, key, 0.0) as held:
        if held is None:
            return LOOK_S
        if wait_s := due_in_s(engine, key):
            return wait_s
        shard = _random_shard(engine, root)
        if shard is None:
            return LOOK_S
        manifest = parse_manifest(shard.raw)
        affordable = [found for found in _regions(manifest) if budget.pause_s(found[2].length) < DAY_S]
        if not affordable:
            return LOOK_S
        kind, file, region = random.choices(affordable, [1 + found[2].length for found in affordable])[0]
        wait_s = budget.pause_s(region.length)
        with Session(engine) as session, session.begin():
            # Paid for before it is read: a fault costs a request, too. A lease rests 1/BUSY_SHARE as long as it took.
            held.scanned(session, wait_s * BUSY_SHARE)
        fault = _fault(place_of(shard.folder), manifest, kind, file, region)
        with Session(engine) as session, session.begin():
            held.renew(session)
            row = session.get_one(DatasetRow, shard.dataset_id)
            row.sampled_regions, row.sampled_bytes = row.sampled_regions + 1, row.sampled_bytes + region.length
        if fault is not None:
            record(engine, root, [Verdict(shard.dataset_id, shard.id, shard.fingerprint, fault)])
    return wait_s


def _random_shard(engine: Engine, root: str) -> Row[int, int, str, str, bytes] | None:
    """A committed shard; the next one by row after a random number, so that no rows are sorted."""
    columns = ShardRow.id, ShardRow.dataset_id, ShardRow.fingerprint, DatasetRow.folder, ManifestRow.raw
    of_root = (DatasetRow.root == root, DatasetRow.state == "ready", ShardRow.state == ShardState.COMMITTED)
    query = (
        select(*columns)
        .join(DatasetRow, DatasetRow.id == ShardRow.dataset_id)
        .join(ManifestRow, ManifestRow.shard_id == ShardRow.id)
        .where(*of_root)
        .order_by(ShardRow.id)
        .limit(1)
    )
    with Session(engine) as session:
        last = session.scalar(select(func.max(ShardRow.id))) or 0
        found = session.execute(query.where(ShardRow.id >= random.randint(0, last))).first()
        return found or session.execute(query).first()


def _regions(manifest: ShardManifest) -> Iterator[tuple[str, FileInfo, Region]]:
    """Every region that has a checksum of its own, with its file."""
    for kind, file in manifest.files.items():
        yield kind, file, file.head
        yield kind, file, file.footer
        for batch in file.batches:
            for region in (batch.head, *batch.column_regions):
                yield kind, file, region


def _fault(place: Place, manifest: ShardManifest, kind: str, file: FileInfo, region: Region) -> str | None:
    """The problem of the region, None if there is none."""
    digest = xxhash.xxh3_64()
    try:
        content, _ = open_data(place, manifest, kind)
        end = region.offset + region.length
        for start in range(region.offset, end, PIECE_BYTES):
            piece = content.read(start, min(PIECE_BYTES, end - start))
            VERIFIED_BYTES.inc(len(piece))
            digest.update(piece)
    except CorruptShard as error:
        return str(error)
    except OSError as error:
        return str(unreadable(error, file.name))
    if digest.hexdigest() == region.xxh3:
        return None
    return (
        f"{file.name}: bytes {region.offset}..{end}: checksum {digest.hexdigest()}, committed as {region.xxh3}; "
        "make the part again"
    )


def _requests(size_bytes: int) -> int:
    return REQUESTS_TO_OPEN + max(1, -(-size_bytes // PIECE_BYTES))
