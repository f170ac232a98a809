"""Which document comes next, and where it goes: shares of several sources, duplicates, held-out documents."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from arwkv_producer.text.encoding import Encoded
from arwkv_producer.text.report import CorpusReport


class Stream(Protocol):
    """The documents of one share of the corpus."""

    def next(self) -> Encoded | None:
        """The next document, None after the last."""

    def rest(self) -> int:
        """How many documents are left, read to the end."""


class Seen(Protocol):
    """The keys of the documents so far."""

    def add(self, key: bytes) -> bool:
        """Add a key; whether it is new."""


class SeenInMemory:
    """A set of keys: about 100 bytes each."""

    def __init__(self) -> None:
        self._keys: set[bytes] = set()

    def add(self, key: bytes) -> bool:
        """Add a key; whether it is new."""
        known = len(self._keys)
        self._keys.add(key)
        return len(self._keys) > known


@dataclass(frozen=True)
class Rules:
    """How documents become samples."""

    max_length: int
    weights: tuple[float, ...] = (1.0,)
    """Of each share: its tokens in proportion to the others'."""
    held_out: float = 0.0
    keep_duplicates: bool = True


@dataclass(frozen=True, slots=True)
class Placed:
    """A document, and where it goes."""

    document: Encoded
    held_out: bool
    duplicate: bool


class Mixer:
    """Takes the documents of several streams, each in proportion to its weight.

    The next document is always of the stream that is furthest behind its share, and the corpus ends when that stream
    has no more. About the fraction `held_out` of the documents is held out; their text alone decides, not their order.
    Without `keep_duplicates`, further documents of the same text are left out.
    """

    def __init__(self, streams: Sequence[Stream], rules: Rules, seen: Seen, given: Sequence[float] = ()) -> None:
        """`given` is what the streams gave before, in tokens over weight."""
        self._streams, self._rules, self.seen = streams, rules, seen
        self.given = list(given) or [0.0] * len(streams)
        self._turn = self.given.index(min(self.given))
        self.between_pairs = True
        """Whether the next document is no second half of a pair."""

    def next(self) -> Placed | None:
        """The next document, or None at the corpus's end."""
        document = self._streams[self._turn].next()
        if document is None:
            return None
        held_out = int.from_bytes(document.digest[:8], "big") < self._rules.held_out * 2**64
        compared = not self._rules.keep_duplicates and len(document.ids) > 0
        duplicate = compared and not self.seen.add(document.key)
        if not duplicate:
            self.given[self._turn] += len(document.ids) / self._rules.weights[self._turn]
        self.between_pairs = not document.is_chosen
        if self.between_pairs:  # else its other half comes next, whosoever's turn it is
            self._turn = self.given.index(min(self.given))
        return Placed(document, held_out, duplicate)

    def rest(self) -> int:
        """How many documents the streams still have, beyond their share."""
        return sum(stream.rest() for stream in self._streams)


def split(document: Encoded, max_length: int) -> Iterator[tuple[NDArray[np.int32], NDArray[np.bool_], str]]:
    """A document of n tokens as ceil(n / max_length) samples that hold each token once, in order: ids, mask, source."""
    for start in range(0, len(document.ids), max_length):
        end = start + max_length
        source = document.source + (f"+{start}" if start else "")
        yield document.ids[start:end], document.mask[start:end], source


@dataclass
class Counts:
    """The numbers of a corpus while its documents arrive."""

    documents: int = 0
    documents_cut: int = 0
    documents_empty: int = 0
    documents_duplicate: int = 0
    samples: int = 0
    tokens: int = 0
    tokens_counted: int = 0
    turns: dict[str, int] = field(default_factory=dict)

    def add(self, placed: Placed, max_length: int) -> None:
        """Count a document and the samples that `split` makes of it."""
        if placed.duplicate:
            self.documents_duplicate += 1
            return
        document, length = placed.document, len(placed.document.ids)
        self.documents += 1
        self.documents_cut += length > max_length
        self.documents_empty += length == 0
        self.samples += -(-length // max_length)
        self.tokens += length
        # A sample's first token is not predicted.
        self.tokens_counted += int(document.mask.sum()) - int(document.mask[::max_length].sum())
        for role in document.roles:
            self.turns[role] = self.turns.get(role, 0) + 1

    def report(self) -> CorpusReport:
        """The same without the names of files and what is beyond a source's share."""
        return CorpusReport(
            documents=self.documents,
            documents_cut=self.documents_cut,
            documents_empty=self.documents_empty,
            documents_duplicate=self.documents_duplicate,
            tokens_counted=self.tokens_counted,
            turns=dict(self.turns),
        )
