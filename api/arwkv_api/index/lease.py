"""The right to write one root's rows: one holder at a time, over threads, workers and machines."""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Engine, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from arwkv_api.index.orm import LeaseRow
from arwkv_store.errors import TryAgain

# A holder that neither renews nor releases for this long counts as dead.
LEASE_S = 15.0
RETRY_S = 0.05
RENEW_EVERY_S = 5.0
# Scans take at most this share of the time, so that a slow root does not keep a disk busy.
BUSY_SHARE = 0.2
# A root that was not scanned for this long is no longer served, and the names of its datasets are free again.
ABANDONED_AFTER_S = 60.0


class LeaseLost(TryAgain):
    """Another process took the root over because this one was stalled; its transaction is rolled back."""


@dataclass(frozen=True)
class Lease:
    """Held while its context is open; `renew` inside each writing transaction stops a stalled holder."""

    root: str
    holder: str

    def renew(self, session: Session) -> None:
        """Keep the lease, in `session`'s transaction. Raises LeaseLost if another process has it."""
        mine = update(LeaseRow).where(LeaseRow.root == self.root, LeaseRow.holder == self.holder)
        if session.execute(mine.values(expires_at_s=time.time() + LEASE_S)).rowcount != 1:  # type: ignore[attr-defined]  # an UPDATE's result has it
            raise LeaseLost(f"index of {self.root}: another process scans it now; ask again")

    def scanned(self, session: Session, took_s: float, rested_s: float = 0.0) -> None:
        """Record that the root was scanned just now, and how long that took, with rests that spare the pause after."""
        busy_s = max(took_s - rested_s * (1 + BUSY_SHARE), 0.0)
        mine = update(LeaseRow).where(LeaseRow.root == self.root, LeaseRow.holder == self.holder)
        session.execute(mine.values(scanned_at_s=time.time(), scan_took_s=busy_s))


@dataclass
class Renewal:
    """Keeps a lease during long work without writes: call it often; it renews at intervals. Raises LeaseLost."""

    engine: Engine
    held: Lease
    _renewed_s: float = field(default_factory=time.monotonic, init=False)

    def __call__(self) -> None:
        if time.monotonic() - self._renewed_s > RENEW_EVERY_S:
            with Session(self.engine) as session, session.begin():
                self.held.renew(session)
            self._renewed_s = time.monotonic()


@contextmanager
def lease(engine: Engine, root: str, wait_s: float) -> Iterator[Lease | None]:
    """Hold `root` for the context; None if another process held it for all of `wait_s` seconds."""
    held = Lease(root, uuid.uuid4().hex)
    deadline = time.monotonic() + wait_s
    while not (taken := _take(engine, held)) and time.monotonic() < deadline:
        time.sleep(RETRY_S)
    if not taken:
        yield None
        return
    try:
        yield held
    finally:
        with Session(engine) as session, session.begin():
            mine = update(LeaseRow).where(LeaseRow.root == root, LeaseRow.holder == held.holder)
            session.execute(mine.values(expires_at_s=0.0))


def pause_s(took_s: float) -> float:
    """How long no process scans a root again after a scan of this duration."""
    return took_s / BUSY_SHARE


def due_in_s(engine: Engine, root: str, interval_s: float = 0.0) -> float:
    """Seconds until `root` is scanned again: the interval after any process's last scan, later after a slow one."""
    with Session(engine) as session:
        row = session.get(LeaseRow, root)
        if row is None:
            return 0.0
        return max(row.scanned_at_s + max(interval_s, pause_s(row.scan_took_s)) - time.time(), 0.0)


def is_abandoned(session: Session, root: str) -> bool:
    """True where no process has scanned `root` for a while: it was moved, or its service stopped."""
    row = session.get(LeaseRow, root)
    if row is None:
        return True
    due_s = row.scanned_at_s + row.scan_took_s + pause_s(row.scan_took_s)
    return time.time() - max(due_s, row.expires_at_s) > ABANDONED_AFTER_S


def _take(engine: Engine, wanted: Lease) -> bool:
    now = time.time()
    free = update(LeaseRow).where(LeaseRow.root == wanted.root, LeaseRow.expires_at_s < now)
    with Session(engine) as session, session.begin():
        taken = session.execute(free.values(holder=wanted.holder, expires_at_s=now + LEASE_S)).rowcount  # type: ignore[attr-defined]  # as above
        if taken or session.get(LeaseRow, wanted.root) is not None:
            return bool(taken)
    try:
        with Session(engine) as session, session.begin():
            session.add(LeaseRow(root=wanted.root, holder=wanted.holder, expires_at_s=now + LEASE_S))
    except IntegrityError:
        return False  # another process was first
    return True
