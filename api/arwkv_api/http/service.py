"""The state of a running application: its index, its settings, and the thread that scans the roots."""

import logging
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from arwkv_api.config import Settings
from arwkv_api.index.lease import pause_s
from arwkv_api.index.pace import HOLDS_S, Pace, committed_bytes, pass_days, verification_rate
from arwkv_api.index.scan import scan_root
from arwkv_api.index.scrub import verify_due
from arwkv_api.kept import Kept
from arwkv_api.roots.looks import Looks
from arwkv_api.views.preview import Previews
from arwkv_api.views.runs import Runs

log = logging.getLogger("arwkv_api.service")

# After this many scans, files are compared even in folders whose own time has not changed.
DEEP_LOOK_INTERVALS = 10
# Pages of lists, because many readers request the same ones.
KEPT_ANSWERS_BYTES = 16 << 20


@dataclass
class Service:
    """One per application. `start` and `stop` bound the scanning thread's life."""

    engine: Engine
    settings: Settings
    answers: Kept[bytes] = field(default_factory=lambda: Kept(KEPT_ANSWERS_BYTES, len))
    previews: Previews = field(default_factory=Previews)
    scanned_once: threading.Event = field(default_factory=threading.Event)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _pass_days: float = 0.0
    _threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runs = Runs((*self.settings.runs, *self.settings.roots))

    def start(self) -> None:
        """Start to scan the roots and to verify shards in the background."""
        self._threads.append(threading.Thread(target=self._scan_until_stopped, name="scan", daemon=True))
        if self.settings.verify_mb_per_s != 0:
            self._threads.append(threading.Thread(target=self._verify_until_stopped, name="verify", daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the background threads after their current work, and close the index."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self.engine.dispose()

    def _scan_until_stopped(self) -> None:
        looks = Looks(DEEP_LOOK_INTERVALS * self.settings.scan_interval_s)
        fresh_s = self.settings.scan_interval_s * 0.8
        while not self._stopping.is_set():
            wait_s = self.settings.scan_interval_s
            for root in self.settings.roots:
                began = time.monotonic()
                try:
                    scan_root(self.engine, root, fresh_s=fresh_s, looks=looks, stopping=self._stopping)
                except Exception:  # the thread must survive every scan, or the index is never updated
                    log.exception("scan of %s failed; it is tried again", root)
                    wait_s = max(wait_s, pause_s(time.monotonic() - began))
            self.scanned_once.set()
            self._stopping.wait(wait_s)

    def _verify_until_stopped(self) -> None:
        pace = Pace(verification_rate(0, self.settings.verify_mb_per_s), self._stopping)
        passed: dict[Path, int] = {}
        while not self._stopping.is_set():
            more = False
            for root in self.settings.roots:
                try:
                    self._keep_up(pace)
                    here, passed[root] = verify_due(self.engine, str(root), pace, passed.get(root, 0))
                    more |= here
                except Exception:  # as above
                    log.exception("verification under %s failed; it is tried again", root)
            if not more:
                self._stopping.wait(self.settings.scan_interval_s)

    def _keep_up(self, pace: Pace) -> None:
        """Set the pace by the size of the shards, and warn once if they cannot all be verified in time."""
        with Session(self.engine) as session:
            total_bytes = committed_bytes(session, self.settings.roots)
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
