"""The documents of one share's sources, from where an earlier run ended; what was read before has to be unchanged."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import xxhash

from arwkv_producer.text.encoding import Encoded, digest_of
from arwkv_producer.text.reading import read_records
from arwkv_producer.text.records import Record
from arwkv_producer.text.sources import Source
from arwkv_producer.tokens.journal import Journal, SourceState
from arwkv_producer.tokens.workers import Encoders
from arwkv_store.errors import UsageError

RECORDS_PER_BATCH = 256
CHARACTERS_PER_BATCH = 1 << 20
"""A batch of long records holds fewer."""


class ShareStream:
    """The documents of a share, tokenized. Counts what was taken of each source.

    It goes through the recorded visits from `position` on and then, unless `again`, through what is new: further
    documents of sources that have grown, and further sources.
    """

    def __init__(
        self,
        share: int,
        sources: Sequence[Source],
        encoders: Encoders,
        journal: Journal,
        position: tuple[int, int],
        *,
        extend: bool = False,
        again: bool = False,
    ) -> None:
        """Raises UsageError if a source that was read has fewer or other documents, or (without `extend`) is
        missing."""
        self._share, self._encoders, self._journal = share, encoders, journal
        self._sources = {source.key: source for source in sources}
        self._states = journal.sources(share)
        self._visits = journal.visits(share)
        self._recorded_visits = len(self._visits)
        self.position = position
        self._changed: set[str] = set()
        self._require_present(extend)
        self._further = [] if again else list(self._new_visits())
        self._records = self._feed()
        self._in_flight: deque[list[int]] = deque()
        self._closing = False
        self._results = encoders.encoded(self._batches())
        self._waiting: deque[tuple[int, Encoded]] = deque()

    def next(self) -> Encoded | None:
        """The next document, None after the last."""
        while not self._waiting:
            batch = next(self._results, None)
            if batch is None:
                self.position = len(self._visits), 0
                return None
            visits = self._in_flight.popleft()
            self._waiting.extend((visits[number], encoded) for number, encoded in batch)
        visit, encoded = self._waiting.popleft()
        _, offset = self.position if visit == self.position[0] else (visit, 0)
        self.position = visit, offset + 1
        self._take(self._visits[visit][0], encoded.digest)
        return encoded

    def rest(self) -> int:
        """How many documents are left, read to the end and not tokenized."""
        self._closing = True
        ahead = len(self._waiting) + sum(len(batch) for batch in self._results)
        return ahead + sum(1 for _ in self._encoders.encoder.documents(record for _, record in self._records))

    def record(self) -> None:
        """Put into the journal what was taken since the last call."""
        reached = min(self.position[0] + 1, len(self._visits))
        for number in range(self._recorded_visits, reached):
            name, first = self._visits[number]
            self._journal.put_visit(self._share, number, name, first)
            self._changed.add(name)
        self._recorded_visits = max(self._recorded_visits, reached)
        for name in self._changed:
            self._journal.put_source(self._share, name, self._states[name])
        self._changed.clear()

    def _take(self, name: str, digest: bytes) -> None:
        state = self._states[name]
        chain = xxhash.xxh3_128_digest(state.chain + digest)
        self._states[name] = replace(state, documents=state.documents + 1, chain=chain)
        self._changed.add(name)

    def _require_present(self, extend: bool) -> None:
        visit = self.position[0]
        unfinished = {self._visits[visit][0]} if visit < len(self._visits) else set()
        missing = sorted((unfinished if extend else self._states.keys()) - self._sources.keys())
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UsageError(
                f"--data: the dataset was made of {missing[0]}{more}, which is not there or not named now; restore "
                "it, or name further text alone with --extend"
            )

    def _new_visits(self) -> Iterator[tuple[str, int]]:
        """Sources with documents that were not read yet, and how many were. Compares sources that have changed."""
        visit = self.position[0]
        unfinished = self._visits[visit][0] if visit < len(self._visits) else None
        for name, source in self._sources.items():
            signature, known = source.signature(), self._states.get(name)
            if known is None:
                self._states[name] = SourceState(signature)
                yield name, 0
            elif known.signature != signature:
                grown = self._has_grown(source, known)
                self._states[name] = replace(known, signature=signature)
                self._changed.add(name)
                if grown and name != unfinished:
                    yield name, known.documents

    def _has_grown(self, source: Source, known: SourceState) -> bool:
        """Whether there are documents behind the known ones. Raises UsageError if those are fewer or other ones."""
        documents = self._encoders.encoder.documents(read_records([source], self._encoders.encoder.field))
        chain, count = b"", 0
        for document in islice(documents, known.documents):
            chain, count = xxhash.xxh3_128_digest(chain + digest_of(document)), count + 1
        if count < known.documents:
            raise UsageError(
                f"--data {source.key}: it has {count:,} documents, but {known.documents:,} were tokenized: it shrank; "
                "restore it, or make another dataset"
            )
        if chain != known.chain:
            raise UsageError(
                f"--data {source.key}: its first {known.documents:,} documents are not the ones that were tokenized: "
                "it changed; restore it, or make another dataset"
            )
        return next(documents, None) is not None

    def _feed(self) -> Iterator[tuple[int, Record]]:
        """Records, each after the number of its visit."""
        first_visit, offset = self.position
        for visit in range(first_visit, len(self._visits)):
            yield from self._visited(visit, offset if visit == first_visit else 0)
        for name, first in self._further:
            self._visits.append((name, first))
            yield from self._visited(len(self._visits) - 1, 0)

    def _visited(self, visit: int, offset: int) -> Iterator[tuple[int, Record]]:
        """The records of a visit behind its first `offset` documents."""
        name, first = self._visits[visit]
        if name not in self._sources:
            raise UsageError(f"--data: {name} is needed to make lost parts again; name it too, or restore it")
        records = read_records([self._sources[name]], self._encoders.encoder.field)
        skipped = islice(self._encoders.encoder.documents(records), first + offset) if first + offset else ()
        for _ in skipped:
            pass
        for record in records:
            yield visit, record

    def _batches(self) -> Iterator[list[Record]]:
        """Records in batches of moderate size; notes the visit of each."""
        batch: list[Record] = []
        visits: list[int] = []
        size = 0
        while not self._closing and (fed := next(self._records, None)) is not None:
            visits.append(fed[0])
            batch.append(fed[1])
            size += _characters(fed[1].fields)
            if len(batch) == RECORDS_PER_BATCH or size >= CHARACTERS_PER_BATCH:
                self._in_flight.append(visits)
                yield batch
                batch, visits, size = [], [], 0
        if batch:
            self._in_flight.append(visits)
            yield batch


def _characters(value: Any) -> int:
    """Characters in a record's strings, about."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list | tuple) else 0
