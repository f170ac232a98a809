"""Documents into parts: pieces of the corpus that both datasets end together, so that a run can begin at each."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from arwkv_producer.text.mixing import Mixer, Placed, Rules, split
from arwkv_producer.tokens.journal import Cut, Journal, Place, Totals
from arwkv_producer.tokens.stream import ShareStream
from arwkv_store import Sample, ShardManifest, Writer

SAMPLES_PER_PART = 16_384


class Output:
    """One dataset, which begins with its first part. `made` is told the parts that were not `present`."""

    def __init__(
        self, begin: Callable[[], Writer], present: Collection[int], made: Callable[[ShardManifest], None]
    ) -> None:
        self._begin, self._present, self._made = begin, present, made
        self._writer: Writer | None = None

    @property
    def writer(self) -> Writer:
        """The dataset's writer; begins the dataset."""
        if self._writer is None:
            self._writer = self._begin()
        return self._writer

    def write(self, samples: Sequence[Sample], place: Place) -> Place:
        """Commit samples as parts from `place` on; returns the place behind them."""
        for start in range(0, len(samples), SAMPLES_PER_PART):
            manifest = self.writer.write_shard(place.part, samples[start : start + SAMPLES_PER_PART], exact=True)
            if place.part not in self._present:
                self._made(manifest)
            place = replace(place, part=place.part + 1)
        return replace(place, sample=place.sample + len(samples))


@dataclass
class Piece:
    """A run of documents: their samples in both datasets."""

    kept: list[Sample] = field(default_factory=list)
    apart: list[Sample] = field(default_factory=list)
    documents: int = 0
    ended: bool = False
    """Whether the corpus ends with it."""


def gather(
    mixer: Mixer, cut: Cut, rules: Rules, full: Callable[[Piece, int], bool], add: Callable[[Placed], None]
) -> Piece:
    """The documents behind a cut until the piece is `full` (asked with the number of its tokens), or the corpus ends.

    `add` is told each document. A pair's halves stay together.
    """
    piece, tokens = Piece(), 0
    while not (mixer.between_pairs and full(piece, tokens)):
        placed = mixer.next()
        if placed is None:
            return replace(piece, ended=True)
        piece.documents += 1
        add(placed)
        if placed.duplicate:
            continue
        samples, place = (piece.apart, cut.apart) if placed.held_out else (piece.kept, cut.kept)
        for ids, mask, source in split(placed.document, rules.max_length):
            sample_id = place.sample + len(samples)
            samples.append(Sample(sample_id=sample_id, tokens=ids, loss_mask=mask, source=source))
        tokens += len(placed.document.ids)
    return piece


def fill(
    journal: Journal,
    streams: Sequence[ShareStream],
    rules: Rules,
    outputs: tuple[Output, Output],
    tokens_per_part: int,
    tell: Callable[[Placed], None],
) -> Totals:
    """Write what the streams still have as parts of both outputs, the kept documents and those held out.

    Returns the totals, which are recorded with each piece. After a crash, the piece in hand is made again.
    """
    number, cut = journal.last_cut() or (0, Cut(tuple((0, 0) for _ in streams), (0.0,) * len(streams)))
    totals, began = journal.totals(), cut.documents

    def count(placed: Placed) -> None:
        (totals.apart if placed.held_out else totals.kept).add(placed, rules.max_length)
        tell(placed)

    def full(piece: Piece, tokens: int) -> bool:
        return tokens >= tokens_per_part or len(piece.kept) + len(piece.apart) >= SAMPLES_PER_PART

    mixer = Mixer(streams, rules, journal.seen(number), cut.given)
    ended = False
    while not ended:
        journal.put_cut(number, cut)
        piece = gather(mixer, cut, rules, full, count)
        kept, apart = outputs[0].write(piece.kept, cut.kept), outputs[1].write(piece.apart, cut.apart)
        cut = Cut(
            tuple(stream.position for stream in streams),
            tuple(mixer.given),
            kept,
            apart,
            cut.documents + piece.documents,
        )
        number, ended = number + bool(piece.documents), piece.ended
        journal.put_cut(number, cut)
        del piece  # before the next is gathered
        mixer.seen = journal.seen(number)
        if ended and cut.documents > began:
            totals.beyond_share = mixer.rest()
        for stream in streams:
            stream.record()
        journal.put_totals(totals)
        journal.commit()
    return totals


def missing_pieces(journal: Journal, missing: tuple[set[int], set[int]]) -> Iterator[tuple[int, Cut, int]]:
    """The pieces that hold a missing part of either dataset: number, cut before it, documents."""
    cuts = list(journal.cuts())
    for (number, cut), (_, after) in pairwise(cuts):
        kept, apart = range(cut.kept.part, after.kept.part), range(cut.apart.part, after.apart.part)
        if missing[0].intersection(kept) or missing[1].intersection(apart):
            yield number, cut, after.documents - cut.documents


def make_again(
    journal: Journal,
    streams: Sequence[ShareStream],
    rules: Rules,
    outputs: tuple[Output, Output],
    piece: tuple[int, Cut, int],
) -> None:
    """Write the parts of a piece again; those that are there have to be the same."""
    number, cut, documents = piece
    mixer = Mixer(streams, rules, journal.seen(number), cut.given)
    made = gather(mixer, cut, rules, lambda so_far, _: so_far.documents >= documents, lambda placed: None)
    outputs[0].write(made.kept, cut.kept)
    outputs[1].write(made.apart, cut.apart)
