"""The state of a running application: its index, its settings, and the thread that scans the roots."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from arwkv_api.config import Settings
from arwkv_api.index.lease import pause_s
from arwkv_api.index.pace import HOLDS_S, Pace, committed_bytes, pass_days, verification_rate
from arwkv_api.index.sampling import LOOK_S, Budget, sample_region
from arwkv_api.index.scan import scan_root
from arwkv_api.index.scrub import verify_due
from arwkv_api.kept import Kept
from arwkv_api.roots.looks import Looks
from arwkv_api.roots.place import is_remote
from arwkv_api.views.changes import Changes
from arwkv_api.views.preview import Previews
from arwkv_api.views.runs import Runs
from arwkv_store.errors import TryAgain

log = logging.getLogger("arwkv_api.service")

# After this many scans, files are compared even in folders whose own time has not changed.
DEEP_LOOK_INTERVALS = 10
STOP_WAIT_S = 3.0
# Pages of lists, because many readers request the same ones.
KEPT_ANSWERS_BYTES = 16 << 20

# A page waits this long for the one before it, which a database may hold up.
TURN_WAIT_S = 1.0


@dataclass
class Service:
    """One per application. `start` and `stop` bound the scanning thread's life."""

    engine: Engine
    settings: Settings
    answers: Kept[bytes] = field(default_factory=lambda: Kept(KEPT_ANSWERS_BYTES, len))
    previews: Previews = field(default_factory=Previews)
    scanned_once: threading.Event = field(default_factory=threading.Event)
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _counting: threading.Lock = field(default_factory=threading.Lock)
    _unscanned: int = 0
    _local: list[str] = field(default_factory=list)
    _pass_days: float = 0.0
    _threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        folders = (Path(root) for root in self.settings.roots if not is_remote(root))
        self.runs = Runs((*self.settings.runs, *folders))
        self.changes = Changes(self.engine, self.settings.roots, self.runs)

    def start(self) -> None:
        """Start to scan the roots and to verify shards in the background."""
        self._local = [root for root in self.settings.roots if not is_remote(root)]
        remote = [root for root in self.settings.roots if is_remote(root)]
        # A store that is slow or away must not hold up the disks.
        groups = [(self._local, self.settings.scan_interval_s)] if self._local or not remote else []
        groups += [([root], self.settings.store_scan_interval_s) for root in remote]
        self._unscanned = len(groups)
        for roots, interval_s in groups:
            name = "scan" if roots is self._local else f"scan {roots[0]}"
            self._begin(name, self._scan_until_stopped, roots, interval_s)
        if self.settings.verify_mb_per_s != 0 and self._local:
            self._begin("verify", self._verify_until_stopped)
        budget = Budget(self.settings.sample_requests_per_day, self.settings.sample_mb_per_day * 1e6)
        if remote and budget.requests and budget.size_bytes:
            self._begin("sample", self._sample_until_stopped, remote, budget)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Held while a page is made: threads that make many at once spend as long again on taking the interpreter from
        each other."""
        held = self._turn.acquire(timeout=TURN_WAIT_S)
        try:
            yield
        finally:
            if held:
                self._turn.release()

    def _begin(self, name: str, work: Callable[..., None], *given: object) -> None:
        self._threads.append(threading.Thread(target=work, args=given, name=name, daemon=True))
        self._threads[-1].start()

    def stop(self) -> None:
        """End the background threads after their current work, and close the index.

        One that waits for an object store that is away is not waited for: it ends with the process.
        """
        self._stopping.set()
        deadline = time.monotonic() + STOP_WAIT_S
        for thread in self._threads:
            local = thread.name in ("scan", "verify")
            thread.join(None if local else max(deadline - time.monotonic(), 0.0))
        self.engine.dispose()

    def _scan_until_stopped(self, roots: Sequence[str], interval_s: float) -> None:
        looks = Looks(DEEP_LOOK_INTERVALS * interval_s)
        fresh_s, first = interval_s * 0.8, True
        while not self._stopping.is_set():
            wait_s = interval_s
            for root in roots:
                began = time.monotonic()
                try:
                    scan_root(self.engine, root, fresh_s=fresh_s, looks=looks, stopping=self._stopping)
                except TryAgain as error:
                    log.warning("scan of %s: %s", root, error)
                    wait_s = max(wait_s, pause_s(time.monotonic() - began))
                except Exception:  # the thread must survive every scan, or the index is never updated
                    log.exception("scan of %s failed; it is tried again", root)
                    wait_s = max(wait_s, pause_s(time.monotonic() - began))
            with self._counting:
                self._unscanned, first = self._unscanned - first, False
                if not self._unscanned:
                    self.scanned_once.set()
            self._stopping.wait(wait_s)

    def _verify_until_stopped(self) -> None:
        pace = Pace(verification_rate(0, self.settings.verify_mb_per_s), self._stopping)
        passed: dict[str, int] = {}
        while not self._stopping.is_set():
            more = False
            for root in self._local:
                try:
                    self._keep_up(pace)
                    here, passed[root] = verify_due(self.engine, root, pace, passed.get(root, 0))
                    more |= here
                except Exception:  # as above
                    log.exception("verification under %s failed; it is tried again", root)
            if not more:
                self._stopping.wait(self.settings.scan_interval_s)

    def _sample_until_stopped(self, roots: Sequence[str], budget: Budget) -> None:
        while not self._stopping.is_set():
            wait_s = LOOK_S
            for root in roots:
                try:
                    wait_s = min(wait_s, sample_region(self.engine, root, budget))
                except TryAgain as error:
                    log.warning("sampling of %s: %s", root, error)
                except Exception:  # as above
                    log.exception("sampling of %s failed; it is tried again", root)
            self._stopping.wait(wait_s)

    def _keep_up(self, pace: Pace) -> None:
        """Set the pace by the size of the shards, and warn once if they cannot all be verified in time."""
        with Session(self.engine) as session:
            total_bytes = committed_bytes(session, self._local)
        pace.bytes_per_s = verification_rate(total_bytes, self.settings.verify_mb_per_s)
        days, before = pass_days(total_bytes, pace.bytes_per_s), self._pass_days
        self._pass_days = days
        if days > HOLDS_S / 86_400 >= before:
            log.warning(
                "verification cannot keep up: %.3g TB at %.3g MB/s take %.3g days, longer than a week; "
                "raise --verify-mb-per-s",
                total_bytes / 1e12,
                pace.bytes_per_s / 1e6,
                days,
            )


async def service_of(request: Request) -> Service:
    """The application's service. Async, because a change of thread would take longer."""
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(service_of)]
