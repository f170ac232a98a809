"""A tokenized corpus: documents split into samples of at most `max_length` tokens, numbered in reading order."""

import hashlib
import itertools
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from arwkv_producer.text.conversations import Document
from arwkv_producer.text.report import CorpusReport
from arwkv_store.text.chat_template import Span

DOCUMENTS_PER_BATCH = 256


@dataclass(frozen=True)
class Corpus:
    """Every sample's tokens, in memory at 5 bytes per token."""

    tokens: NDArray[np.int32]
    """[N] all samples' tokens, one after another."""
    loss_mask: NDArray[np.bool_]
    """[N] whether predicting the token counts."""
    starts: NDArray[np.int64]
    """[samples + 1] where each sample begins in `tokens`; the last entry is N."""
    sources: Sequence[str]
    """Per sample: its document, and `+offset` in tokens where it is not the document's beginning."""
    report: CorpusReport

    def __len__(self) -> int:
        return len(self.starts) - 1

    def sample_tokens(self, sample: int) -> NDArray[np.int32]:
        """[T] tokens of one sample."""
        return self.tokens[self.starts[sample] : self.starts[sample + 1]]

    def sample_mask(self, sample: int) -> NDArray[np.bool_]:
        """[T] loss mask of one sample."""
        return self.loss_mask[self.starts[sample] : self.starts[sample + 1]]

    def fingerprint(self) -> str:
        """sha256 over sample bounds, tokens and mask."""
        digest = hashlib.sha256(self.starts.tobytes())
        digest.update(self.tokens.data)
        digest.update(self.loss_mask.data)
        return digest.hexdigest()


@dataclass
class _Building:
    """One corpus while documents arrive."""

    max_length: int
    tokens: list[NDArray[np.int32]] = field(default_factory=list)
    masks: list[NDArray[np.bool_]] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    report: CorpusReport = field(default_factory=CorpusReport)
    turns: Counter[str] = field(default_factory=Counter)

    def add(self, document: Document, ids: NDArray[np.int32], mask: NDArray[np.bool_]) -> None:
        """Split a document of n tokens into ceil(n / max_length) samples that hold each token once, in order."""
        report = self.report
        self.report = replace(
            report,
            documents=report.documents + 1,
            documents_cut=report.documents_cut + (len(ids) > self.max_length),
            documents_empty=report.documents_empty + (len(ids) == 0),
        )
        self.turns.update(document.roles)
        for start in range(0, len(ids), self.max_length):
            self.tokens.append(ids[start : start + self.max_length])
            self.masks.append(mask[start : start + self.max_length])
            self.sources.append(document.source + (f"+{start}" if start else ""))

    def corpus(self) -> Corpus:
        counted = sum(int(mask[1:].sum()) for mask in self.masks)
        return Corpus(
            tokens=np.concatenate([np.empty(0, np.int32), *self.tokens]),
            loss_mask=np.concatenate([np.empty(0, np.bool_), *self.masks]),
            starts=np.cumsum([0, *map(len, self.tokens)], dtype=np.int64),
            sources=self.sources,
            report=replace(self.report, tokens_counted=counted, turns=dict(self.turns)),
        )


def tokenize(
    sources: Sequence[Iterable[Document]],
    tokenizer: Any,
    max_length: int,
    *,
    weights: Sequence[float] = (1.0,),
    special_tokens: bool = True,
    keep_duplicates: bool = True,
    held_out: float = 0.0,
) -> tuple[Corpus, Corpus]:
    """Tokenize with the teacher's tokenizer (transformers) and split; returns the corpus and its held-out documents.

    Several sources give tokens in proportion to their weights: the next document is always of the source that is
    furthest behind its share, and the corpus ends when that source has no more. The rest of the others is counted.
    About the fraction `held_out` of the documents is held out; the choice depends on their text, not on their order.
    Without `keep_duplicates`, further documents of the same text are left out and counted.
    """
    kept, apart = _Building(max_length), _Building(max_length)
    seen: set[tuple[int, bool]] = set()
    streams = [_Stream(documents, tokenizer, special_tokens) for documents in sources]
    given = [0.0] * len(streams)
    turn = 0
    while (tokenized := streams[turn].next()) is not None:
        document, ids, mask = tokenized
        content = xxhash.xxh3_128_intdigest((document.pair or document.text).encode("utf-8", "surrogatepass"))
        building = apart if (content >> 64) < held_out * 2**64 else kept
        if not keep_duplicates and len(ids) and (content, document.is_chosen) in seen:
            building.report = replace(building.report, documents_duplicate=building.report.documents_duplicate + 1)
        else:
            seen.add((content, document.is_chosen))
            building.add(document, ids, mask)
            given[turn] += len(ids) / weights[turn]
        if not document.is_chosen:  # its other half comes next, whosoever's turn it is
            turn = given.index(min(given))
    kept.report = replace(kept.report, documents_beyond_share=sum(stream.rest() for stream in streams))
    return kept.corpus(), apart.corpus()


Tokenized = tuple[Document, NDArray[np.int32], NDArray[np.bool_]]
"""A document, its token ids [T] and its loss mask [T]."""


class _Stream:
    """One source's documents, tokenized a batch at a time."""

    def __init__(self, documents: Iterable[Document], tokenizer: Any, special_tokens: bool) -> None:
        self._documents = iter(documents)
        self._tokenizer, self._special_tokens = tokenizer, special_tokens
        self._waiting: deque[Tokenized] = deque()

    def next(self) -> Tokenized | None:
        """The next document, None after the last."""
        if not self._waiting:
            batch = list(itertools.islice(self._documents, DOCUMENTS_PER_BATCH))
            self._waiting.extend(self._tokenized(batch) if batch else ())
        return self._waiting.popleft() if self._waiting else None

    def rest(self) -> int:
        """How many documents are left, read to the end."""
        return len(self._waiting) + sum(1 for _ in self._documents)

    def _tokenized(self, batch: list[Document]) -> Iterator[Tokenized]:
        partly = any(document.counted is not None for document in batch)
        # verbose=False: that a document is longer than the model's context is no news here.
        encoded = self._tokenizer(
            [document.text for document in batch],
            add_special_tokens=self._special_tokens,
            return_attention_mask=False,
            return_offsets_mapping=partly,
            verbose=False,
        )
        for index, document in enumerate(batch):
            ids = np.asarray(encoded["input_ids"][index], dtype=np.int32)
            if document.counted is None:
                yield document, ids, np.ones(len(ids), np.bool_)
            else:
                yield document, ids, _counted_tokens(encoded["offset_mapping"][index], document.counted)


def _counted_tokens(offsets: Sequence[Span], counted: Sequence[Span]) -> NDArray[np.bool_]:
    """[T] whether a token holds a counted character."""
    bounds = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    mask = np.zeros(len(bounds), np.bool_)
    for first, end in counted:
        mask |= (bounds[:, 0] < end) & (bounds[:, 1] > first)
    return mask
