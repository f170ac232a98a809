"""What changes while people look: datasets, running captures, runs. Looked at once a second, however many follow."""

import json
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from arwkv_api.index.orm import DatasetRow
from arwkv_api.roots.folders import METRICS
from arwkv_api.views.runs import Runs, heartbeat_of, notes_of
from arwkv_store.format.heartbeat import Heartbeat

FRESH_S = 1.0
# The newest of each kind that are followed.
MOST = 200


@dataclass(frozen=True)
class Capture:
    """A process that makes a dataset, as it said last."""

    dataset: str
    heartbeat: Heartbeat


def captures(engine: Engine, roots: Sequence[str]) -> list[Capture]:
    """Every process that said that it makes a dataset under the roots, those that said so last first."""
    told = select(DatasetRow.name, DatasetRow.heartbeats).where(
        DatasetRow.root.in_(roots), DatasetRow.heartbeats.is_not(None), DatasetRow.state != "withdrawn"
    )
    with Session(engine) as session:
        found = [
            Capture(name, Heartbeat.model_validate(beat))
            for name, beats in session.execute(told)
            for beat in json.loads(beats or "[]")
        ]
    return sorted(found, key=lambda one: one.heartbeat.at_s, reverse=True)


class Changes:
    """The state of what can be followed, by the name of its event."""

    def __init__(self, engine: Engine, roots: Sequence[str], runs: Runs) -> None:
        self._engine, self._roots, self._runs = engine, roots, runs
        self._lock, self._looked_s = threading.Lock(), float("-inf")
        self._found: dict[str, list[Any]] = {}

    def now(self) -> dict[str, list[Any]]:
        """Items by event, each with its name first, at most a second old."""
        with self._lock:
            if time.monotonic() >= self._looked_s + FRESH_S:
                self._found = {"datasets": self._datasets(), "captures": self._captures(), "runs": self._run_states()}
                self._looked_s = time.monotonic()
            return self._found

    def _datasets(self) -> list[Any]:
        columns = DatasetRow.name, DatasetRow.state, DatasetRow.revision, DatasetRow.shards, DatasetRow.tokens
        newest = select(*columns).where(DatasetRow.root.in_(self._roots), DatasetRow.state != "withdrawn")
        with Session(self._engine) as session:
            return [list(row) for row in session.execute(newest.order_by(DatasetRow.updated_at_s.desc()).limit(MOST))]

    def _captures(self) -> list[Any]:
        newest = captures(self._engine, self._roots)[:MOST]
        return [[one.dataset, one.heartbeat.state_at(), one.heartbeat.process, one.heartbeat.at_s] for one in newest]

    def _run_states(self) -> list[Any]:
        found = []
        for name, folder in self._runs.folders().items():
            with suppress(OSError):
                found.append((name, folder, (folder / METRICS).stat()))
        newest = sorted(found, key=lambda run: run[2].st_mtime_ns, reverse=True)[:MOST]
        told = ((name, status, heartbeat_of(folder), notes_of(folder).changed_at_s) for name, folder, status in newest)
        return [
            [name, status.st_size, status.st_mtime, beat and (beat.state_at(), beat.at_s), said_s]
            for name, status, beat, said_s in told
        ]
