"""What `producer tokenise` remembers between runs, in an SQLite file: sources, cuts between parts, keys of documents.

A dataset's parts do not depend on it: without the file, the same command reads everything again and compares.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from arwkv_producer.text.mixing import Counts
from arwkv_store.errors import ConfigurationDiffers, TryAgain, UsageError
from arwkv_store.places.cache import FileCache

JOURNAL_FILE = "tokenise.sqlite"
VERSION = 1
CACHE_KIB = 131_072
"""SQLite's own cache of pages; what exceeds it is left to the system's page cache."""
TABLES = """
CREATE TABLE IF NOT EXISTS sources (share INTEGER, name TEXT, signature TEXT, documents INTEGER, chain BLOB,
                                    PRIMARY KEY (share, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS visits (share INTEGER, number INTEGER, name TEXT, first INTEGER,
                                   PRIMARY KEY (share, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cuts (number INTEGER PRIMARY KEY, cut TEXT);
CREATE TABLE IF NOT EXISTS seen (key BLOB PRIMARY KEY, piece INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, counts TEXT) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class SourceState:
    """What was read of a source."""

    signature: str
    documents: int = 0
    chain: bytes = b""
    """A hash over the digests of these documents."""


@dataclass(frozen=True)
class Place:
    """The next part of a dataset, and its first sample."""

    part: int = 0
    sample: int = 0


@dataclass(frozen=True)
class Cut:
    """A point between two pieces of the corpus, at which parts end: reading can begin here."""

    positions: tuple[tuple[int, int], ...]
    """Of each share: the visit of a source, and the documents read in it."""
    given: tuple[float, ...]
    """Of each share: its tokens over its weight."""
    kept: Place = Place()
    apart: Place = Place()
    documents: int = 0
    """Documents before this cut."""

    @classmethod
    def of_json(cls, text: str) -> Self:
        """The cut that `to_json` wrote."""
        known = json.loads(text)
        return cls(
            positions=tuple((visit, offset) for visit, offset in known["positions"]),
            given=tuple(known["given"]),
            kept=Place(**known["kept"]),
            apart=Place(**known["apart"]),
            documents=known["documents"],
        )

    def to_json(self) -> str:
        """All of it; floats come back bit for bit."""
        return json.dumps(asdict(self))


@dataclass
class Totals:
    """The numbers of both datasets."""

    kept: Counts = field(default_factory=Counts)
    apart: Counts = field(default_factory=Counts)
    beyond_share: int = 0


class Journal:
    """One process at a time has it open. What is recorded counts from the next `commit`."""

    def __init__(self, path: Path, rules: str) -> None:
        """Open the file, or begin it. Raises TryAgain if another process has it open, UsageError for another's file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._database = sqlite3.connect(path, timeout=0, isolation_level=None)
        try:
            self._database.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._database.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise TryAgain(f"{path}: another process makes this dataset ({error}); wait for it to end") from error
        except sqlite3.DatabaseError as error:
            raise UsageError(f"{path}: {error}; remove it: the same command then reads everything again") from error
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            raise UsageError(f"{path}: version {version}, this release writes {VERSION}; use the release that wrote it")
        for statement in TABLES.split(";"):
            self._database.execute(statement)
        self._database.execute(f"PRAGMA user_version={VERSION}")
        self._require(rules)
        self.commit()

    def _require(self, rules: str) -> None:
        """Compare the rules with those of the parts that were made."""
        last = self.last_cut()
        if last is None or not last[1].documents:
            self._set("rules", rules, replace=True)
        elif (recorded := self._get("rules")) != rules:
            raise ConfigurationDiffers(
                f"{self.path}: made with {recorded}; asked for now: {rules}; name another folder, or the settings "
                "that it has"
            )

    def cuts(self) -> Iterator[tuple[int, Cut]]:
        """All cuts by number; the last is where the corpus goes on."""
        for number, text in self._database.execute("SELECT number, cut FROM cuts ORDER BY number").fetchall():
            yield number, Cut.of_json(text)

    def last_cut(self) -> tuple[int, Cut] | None:
        """The cut where the corpus goes on; None at its beginning."""
        row = self._database.execute("SELECT number, cut FROM cuts ORDER BY number DESC LIMIT 1").fetchone()
        return None if row is None else (row[0], Cut.of_json(row[1]))

    def put_cut(self, number: int, cut: Cut) -> None:
        """Record a cut."""
        self._database.execute("INSERT OR REPLACE INTO cuts VALUES (?, ?)", (number, cut.to_json()))

    def sources(self, share: int) -> dict[str, SourceState]:
        """What was read of each source of a share."""
        rows = self._database.execute("SELECT name, signature, documents, chain FROM sources WHERE share = ?", (share,))
        return {name: SourceState(*state) for name, *state in rows}

    def put_source(self, share: int, name: str, state: SourceState) -> None:
        """Record what was read of a source."""
        values = share, name, state.signature, state.documents, state.chain
        self._database.execute("INSERT OR REPLACE INTO sources VALUES (?, ?, ?, ?, ?)", values)

    def visits(self, share: int) -> list[tuple[str, int]]:
        """Every reading of a source, in order: its name, and the documents that earlier readings had taken."""
        rows = self._database.execute("SELECT name, first FROM visits WHERE share = ? ORDER BY number", (share,))
        return [(name, first) for name, first in rows]

    def put_visit(self, share: int, number: int, name: str, first: int) -> None:
        """Record that a source is read from its document `first` on."""
        self._database.execute("INSERT OR REPLACE INTO visits VALUES (?, ?, ?, ?)", (share, number, name, first))

    def seen(self, piece: int) -> "SeenOnDisk":
        """The keys of the documents before a piece of the corpus, which adds its own."""
        return SeenOnDisk(self._database, piece)

    def totals(self) -> Totals:
        """The recorded numbers."""
        known = self._get("totals")
        if known is None:
            return Totals()
        return Totals(Counts(**known["kept"]), Counts(**known["apart"]), known["beyond_share"])

    def put_totals(self, totals: Totals) -> None:
        """Record the numbers."""
        self._set("totals", asdict(totals), replace=True)

    def commit(self) -> None:
        """Make everything recorded so far durable, together."""
        self._database.execute("COMMIT")
        self._database.execute("BEGIN EXCLUSIVE")

    def close(self) -> None:
        """Leave what was not committed out."""
        self._database.rollback()
        self._database.close()

    def _get(self, name: str) -> Any:
        row = self._database.execute("SELECT counts FROM counts WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def _set(self, name: str, value: Any, *, replace: bool) -> None:
        otherwise = "REPLACE" if replace else "IGNORE"
        self._database.execute(f"INSERT OR {otherwise} INTO counts VALUES (?, ?)", (name, json.dumps(value)))


class SeenOnDisk:
    """The keys in the journal."""

    def __init__(self, database: sqlite3.Connection, piece: int) -> None:
        self._database, self._piece = database, piece
        self._again: set[bytes] = set()
        """Of a piece that is made again: its keys so far."""

    def add(self, key: bytes) -> bool:
        """Add a key; whether it is new."""
        if self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (key, self._piece)).rowcount:
            self._again.add(key)
            return True
        (piece,) = self._database.execute("SELECT piece FROM seen WHERE key = ?", (key,)).fetchone()
        if piece != self._piece or key in self._again:
            return False
        self._again.add(key)
        return True


def journal_path(out: str) -> Path:
    """In the dataset's folder; for a dataset in an object store, in the folder of cached files."""
    if "://" not in out:
        return Path(out).expanduser() / JOURNAL_FILE
    name = hashlib.sha256(out.rstrip("/").encode()).hexdigest()[:32]
    return FileCache.of(None, None).folder / "tokenise" / name / JOURNAL_FILE
