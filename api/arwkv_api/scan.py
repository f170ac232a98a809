"""Looking at the folders and bringing the index up to date: datasets and shards that came, changed or went."""

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from arwkv_api.committed import one_line, read_identity, read_shard
from arwkv_api.folders import ShardFiles, dataset_folders, shard_files
from arwkv_api.indexing import (
    forget,
    mark_missing,
    mark_unreadable,
    mark_vanished,
    store_identity,
    store_shards,
)
from arwkv_api.lease import Lease, lease, scanned_within
from arwkv_api.looks import Looks, shards_time_ns
from arwkv_api.tables import DatasetRow, ShardRow
from arwkv_store.errors import ArwkvError

log = logging.getLogger("arwkv_api.scan")

BATCH_SHARDS = 500


@dataclass(frozen=True)
class Report:
    """What one scan did. `done` is False where another process was at it, or had just been."""

    done: bool
    datasets: int = 0
    changed_shards: int = 0


def scan_root(
    engine: Engine,
    root: Path,
    *,
    wait_s: float = 0.0,
    fresh_s: float = 0.0,
    anew: str | None = None,
    looks: Looks | None = None,
    stopping: threading.Event | None = None,
) -> Report:
    """Index what is new, changed or gone under `root`.

    Leaves it to another process that is at it (after waiting `wait_s` for it) or was within the last `fresh_s`. Dataset
    `anew` is read as if never seen before, and served again if it was withdrawn. `looks` spares listing folders that
    have not changed. Ends after the batch at hand once `stopping` is set; the next scan goes on from there.
    """
    if fresh_s and scanned_within(engine, str(root), fresh_s):
        return Report(done=False)
    with lease(engine, str(root), wait_s) as held:
        if held is None:
            return Report(done=False)
        folders = dict(dataset_folders(root)) if root.is_dir() else {}
        with Session(engine) as session, session.begin():
            mark_missing(session, held, present=set(folders))
            if anew is not None:
                forget(session, held, anew)
        changed = [_scan_dataset(engine, held, name, folder, looks, stopping) for name, folder in folders.items()]
    return Report(True, len(folders), sum(changed))


def _scan_dataset(
    engine: Engine, held: Lease, name: str, folder: Path, looks: Looks | None, stopping: threading.Event | None
) -> int:
    """Bring one dataset up to date; returns how many shards had changed."""
    row = _refresh_identity(engine, held, name, folder)
    if row is None or row.state == "withdrawn" or (looks is not None and looks.unchanged(folder)):
        return 0
    time_ns = shards_time_ns(folder)
    with Session(engine) as session:
        columns = select(ShardRow.part, ShardRow.fingerprint).where(ShardRow.dataset_id == row.id)
        known = dict(session.execute(columns).all())
    found = shard_files(folder)
    changed = [files for part, files in sorted(found.items()) if known.get(part) != files.fingerprint]
    vanished = [part for part, fingerprint in known.items() if part not in found and fingerprint]
    if sum(files.part in known for files in changed) > BATCH_SHARDS:
        # To take so many out of the totals one batch at a time would cost more than to begin anew.
        with Session(engine) as session, session.begin():
            held.renew(session)
            forget(session, held, name)
        return _scan_dataset(engine, held, name, folder, looks, stopping)
    for batch in _batches(changed):
        if stopping is not None and stopping.is_set():
            return 0
        shards = [read_shard(folder, files, row.dataset_hash) for files in batch]
        with Session(engine) as session, session.begin():
            held.renew(session)
            store_shards(session, row.id, shards, replaced=any(files.part in known for files in batch))
    if vanished:
        with Session(engine) as session, session.begin():
            held.renew(session)
            mark_vanished(session, row.id, vanished)
    if looks is not None:
        looks.saw(folder, time_ns)
    if changed or vanished:
        log.info("%s: %d shards read, %d vanished", name, len(changed), len(vanished))
    return len(changed) + len(vanished)


def _refresh_identity(engine: Engine, held: Lease, name: str, folder: Path) -> DatasetRow | None:
    """The dataset's row, as dataset.json has it now; None where that cannot be used."""
    with Session(engine, expire_on_commit=False) as session:
        row = session.scalar(select(DatasetRow).where(DatasetRow.name == name))
    try:
        if row is not None and row.root == held.root and row.state == "ready":
            status = (folder / "dataset.json").lstat()
            if (status.st_mtime_ns, str(folder)) == (row.identity_mtime_ns, row.folder):
                return row
        identity = read_identity(folder)
    except (OSError, ArwkvError) as error:
        if row is None or row.root == held.root:
            with Session(engine) as session, session.begin():
                held.renew(session)
                mark_unreadable(session, held, name, folder, one_line(error))
        return None
    with Session(engine, expire_on_commit=False) as session, session.begin():
        held.renew(session)
        return store_identity(session, held, name, folder, identity)


def _batches(files: Sequence[ShardFiles]) -> Iterator[list[ShardFiles]]:
    rest = iter(files)
    while batch := list(islice(rest, BATCH_SHARDS)):
        yield batch
