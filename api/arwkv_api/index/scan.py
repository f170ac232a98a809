"""Scans the folders and updates the index: new, changed and removed datasets and shards."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from sqlalchemy import Engine, select, update
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from arwkv_api.index.indexing import (
    forget,
    mark_missing,
    mark_ready,
    mark_unreadable,
    mark_vanished,
    store_identity,
    store_notes,
    store_shards,
)
from arwkv_api.index.lease import Lease, LeaseLost, Renewal, due_in_s, is_abandoned, lease
from arwkv_api.index.orm import DatasetRow, ShardRow
from arwkv_api.index.pace import Rest
from arwkv_api.roots.finding import dataset_folders
from arwkv_api.roots.looks import Looks
from arwkv_api.roots.manifests import Shard, one_line, read_identity, read_shard
from arwkv_api.roots.place import Place, ShardFiles
from arwkv_store.errors import ArwkvError, TryAgain
from arwkv_store.format.heartbeat import Heartbeat
from arwkv_store.format.notes import version_of

log = logging.getLogger("arwkv_api.scan")

BATCH_SHARDS = 500


@dataclass(frozen=True)
class Report:
    """The result of one scan. `done` is False if another process was scanning, or had just scanned."""

    done: bool
    datasets: int = 0
    changed_shards: int = 0


def scan_root(
    engine: Engine,
    root: str,
    *,
    wait_s: float = 0.0,
    fresh_s: float = 0.0,
    anew: str | None = None,
    looks: Looks | None = None,
    stopping: threading.Event | None = None,
) -> Report:
    """Index new, changed and removed datasets under `root`.

    Does nothing if another process is scanning (after waiting `wait_s`) or has scanned within the last `fresh_s`.
    Dataset `anew` is read as if it were new, and served again if it was withdrawn. `looks` spares listing folders that
    have not changed. Ends after the current batch once `stopping` is set; the next scan continues from there. A dataset
    that cannot be read is marked so, and holds up no other. Raises OSError or TryAgain if the root cannot be listed.
    """
    if fresh_s and due_in_s(engine, root, fresh_s):
        return Report(done=False)
    with lease(engine, root, wait_s) as held:
        # Asked again, as another process may have scanned between the first question and this one's turn.
        if held is None or (fresh_s and due_in_s(engine, root, fresh_s)):
            return Report(done=False)
        began = time.monotonic()
        renew = Renewal(engine, held)
        places = {}
        for name, place in dataset_folders(root, renew):
            places[name] = place
            renew()
        with Session(engine) as session, session.begin():
            mark_missing(session, held, present=set(places))
            if anew in places:
                forget(session, held, anew)
        scan = _Scan(engine, held, renew, Rest(), looks, stopping)
        changed = [scan.dataset(name, place) for name, place in places.items()]
        if stopping is None or not stopping.is_set():
            with Session(engine) as session, session.begin():
                held.scanned(session, time.monotonic() - began, scan.rest.rested_s)
    return Report(True, len(places), sum(changed))


@dataclass(frozen=True)
class _Scan:
    """The scan of one dataset after another."""

    engine: Engine
    held: Lease
    renew: Renewal
    rest: Rest
    looks: Looks | None
    stopping: threading.Event | None

    def dataset(self, name: str, place: Place) -> int:
        """Update one dataset, or mark why it cannot be read; returns the number of changed shards."""
        try:
            return self._update(name, place)
        except (LeaseLost, OperationalError, InterfaceError):
            raise  # the dataset is not to blame
        except TryAgain as error:
            log.warning("%s: %s", name, error)
            return 0
        except (OSError, ArwkvError) as error:
            problem = one_line(error)
        except Exception as error:  # any fault of this dataset must not delay the others
            log.exception("scan of dataset %s failed; it is tried again", name)
            problem = f"{name}: {type(error).__name__} while it was indexed; the service's log has more"
        with Session(self.engine) as session, session.begin():
            mark_unreadable(session, self.held, name, place.uri, problem)
        return 0

    def _update(self, name: str, place: Place) -> int:
        self.renew()
        row = self._row(name)
        if row is not None and row.root != self.held.root and not self._is_abandoned(row.root):
            if self.looks is None or self.looks.is_news(place, row.folder):
                log.warning("%s: name taken by %s; rename one of the two folders", place.uri, row.folder)
            return 0
        if row is not None:
            self._heartbeats(row, place)
            self._notes(row, place)
        identity = None
        if row is None or row.root != self.held.root or not _is_current(row, place):
            identity = read_identity(place)
        elif row.state == "withdrawn" or (row.state == "ready" and self._unchanged(place)):
            return 0
        mark = place.shards_mark()
        # Listed before anything is written: a dataset is not ready while its shards cannot be seen.
        found = place.shard_files(self._gently if row is not None and row.state == "ready" else self.renew)
        if identity is not None:
            with Session(self.engine, expire_on_commit=False) as session, session.begin():
                self.held.renew(session)
                row = store_identity(session, self.held, name, place.uri, identity)
            if row is not None:
                self._notes(row, place)
        if row is None or row.state == "withdrawn":
            return 0
        read, changed = self._shards(row, place, found)
        if read and row.state == "indexing":
            with Session(self.engine) as session, session.begin():
                self.held.renew(session)
                mark_ready(session, row.id)
        if read and self.looks is not None:
            self.looks.saw(place, mark)
        return changed

    def _gently(self) -> None:
        self.renew()
        self.rest()

    def _heartbeats(self, row: DatasetRow, place: Place) -> None:
        """Store what the processes that make the dataset say, if that is new."""
        found = [beat.model_dump() for raw in place.heartbeats() if (beat := Heartbeat.from_bytes(raw)) is not None]
        said = json.dumps(found) if found else None
        if said != row.heartbeats:
            with Session(self.engine) as session, session.begin():
                self.held.renew(session)
                session.execute(update(DatasetRow).where(DatasetRow.id == row.id).values(heartbeats=said))

    def _notes(self, row: DatasetRow, place: Place) -> None:
        """Store people's notes, if they are new. They hold up nothing: without them the dataset is the same."""
        try:
            raw = place.notes_seen()
        except TryAgain:
            return
        except (OSError, ArwkvError):
            raw = b""
        if version_of(raw) != row.notes_version:
            with Session(self.engine) as session, session.begin():
                self.held.renew(session)
                store_notes(session, row.id, raw)

    def _unchanged(self, place: Place) -> bool:
        return self.looks is not None and self.looks.unchanged(place)

    def _is_abandoned(self, root: str) -> bool:
        with Session(self.engine) as session:
            return is_abandoned(session, root)

    def _row(self, name: str) -> DatasetRow | None:
        with Session(self.engine, expire_on_commit=False) as session:
            return session.scalar(select(DatasetRow).where(DatasetRow.name == name))

    def _shards(self, row: DatasetRow, place: Place, found: dict[int, ShardFiles]) -> tuple[bool, int]:
        """Index the changed shards; returns whether all of them could be read, and their number."""
        with Session(self.engine) as session:
            columns = select(ShardRow.part, ShardRow.fingerprint).where(ShardRow.dataset_id == row.id)
            known = dict(session.execute(columns).all())
        changed = [files for part, files in sorted(found.items()) if known.get(part) != files.fingerprint]
        vanished = [part for part, fingerprint in known.items() if part not in found and fingerprint]
        if sum(files.part in known for files in changed) > BATCH_SHARDS:
            # Subtracting so many shards in batches would cost more than counting again.
            with Session(self.engine) as session, session.begin():
                forget(session, self.held, row.name)
            return False, self._update(row.name, place)
        unread = 0
        for batch in _batches(changed):
            if self.stopping is not None and self.stopping.is_set():
                return False, 0
            shards = _read(row, place, batch, self.renew)
            unread += len(batch) - len(shards)
            with Session(self.engine) as session, session.begin():
                self.held.renew(session)
                store_shards(session, row.id, shards, replaced=any(files.part in known for files in batch))
        if vanished:
            with Session(self.engine) as session, session.begin():
                self.held.renew(session)
                mark_vanished(session, row.id, vanished)
        if changed or vanished:
            log.info("%s: %d shards read, %d vanished", row.name, len(changed) - unread, len(vanished))
        return not unread, len(changed) - unread + len(vanished)


def _is_current(row: DatasetRow, place: Place) -> bool:
    """Whether the present identity of the dataset is indexed."""
    if row.state not in ("ready", "indexing", "withdrawn"):
        return False
    return (place.identity_mark(), place.uri) == (row.identity_mtime_ns, row.folder)


def _read(row: DatasetRow, place: Place, batch: Sequence[ShardFiles], meanwhile: Callable[[], None]) -> list[Shard]:
    """The batch's shards, except those that cannot be read now; the next scan tries them again."""
    shards = []
    place.ahead([files.part for files in batch])
    for files in batch:
        meanwhile()
        try:
            shards.append(read_shard(place, files, row.dataset_hash))
        except TryAgain as error:
            log.warning("%s: %s", row.name, error)
    return shards


def _batches(files: Sequence[ShardFiles]) -> Iterator[list[ShardFiles]]:
    rest = iter(files)
    while batch := list(islice(rest, BATCH_SHARDS)):
        yield batch
