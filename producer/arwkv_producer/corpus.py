"""A tokenised corpus: documents cut into samples of at most `max_length` tokens, numbered in reading order."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from arwkv_producer.conversations import Document, Span

DOCUMENTS_PER_BATCH = 256


@dataclass(frozen=True)
class CorpusReport:
    """What became of the documents. Nothing else was left out."""

    documents: int = 0
    """In this corpus."""
    documents_cut: int = 0
    """Of these, longer than one sample."""
    documents_empty: int = 0
    """Without a single token: left out."""
    documents_duplicate: int = 0
    """The same text as an earlier one: left out."""

    def left_out(self) -> dict[str, int]:
        """Documents left out by reason."""
        return {"empty": self.documents_empty, "duplicate": self.documents_duplicate}


@dataclass(frozen=True)
class Corpus:
    """Every sample's tokens, held in memory at 5 bytes a token."""

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

    def add(self, document: Document, ids: NDArray[np.int32], mask: NDArray[np.bool_]) -> None:
        """Cut a document of n tokens into ceil(n / max_length) samples that hold each token once, in order."""
        report = self.report
        self.report = replace(
            report,
            documents=report.documents + 1,
            documents_cut=report.documents_cut + (len(ids) > self.max_length),
            documents_empty=report.documents_empty + (len(ids) == 0),
        )
        for start in range(0, len(ids), self.max_length):
            self.tokens.append(ids[start : start + self.max_length])
            self.masks.append(mask[start : start + self.max_length])
            self.sources.append(document.source + (f"+{start}" if start else ""))

    def corpus(self) -> Corpus:
        return Corpus(
            tokens=np.concatenate([np.empty(0, np.int32), *self.tokens]),
            loss_mask=np.concatenate([np.empty(0, np.bool_), *self.masks]),
            starts=np.cumsum([0, *map(len, self.tokens)], dtype=np.int64),
            sources=self.sources,
            report=self.report,
        )


def tokenise(
    documents: Iterable[Document],
    tokenizer: Any,
    max_length: int,
    *,
    special_tokens: bool = True,
    keep_duplicates: bool = True,
    held_out: float = 0.0,
) -> tuple[Corpus, Corpus]:
    """Tokenise with the teacher's tokenizer (transformers) and cut; answers the corpus and its held-out documents.

    Which documents are held out depends on their text alone, not on their order: about the fraction `held_out` of them.
    Without `keep_duplicates` the second document of the same text is left out and counted.
    """
    kept, apart = _Building(max_length), _Building(max_length)
    seen: set[int] = set()
    for document, ids, mask in _tokenised(documents, tokenizer, special_tokens):
        content = xxhash.xxh3_128_intdigest(document.text.encode("utf-8", "surrogatepass"))
        building = apart if (content >> 64) < held_out * 2**64 else kept
        if not keep_duplicates and content in seen:
            building.report = replace(building.report, documents_duplicate=building.report.documents_duplicate + 1)
            continue
        seen.add(content)
        building.add(document, ids, mask)
    return kept.corpus(), apart.corpus()


def _tokenised(
    documents: Iterable[Document], tokenizer: Any, special_tokens: bool
) -> Iterator[tuple[Document, NDArray[np.int32], NDArray[np.bool_]]]:
    remaining = iter(documents)
    while batch := list(itertools.islice(remaining, DOCUMENTS_PER_BATCH)):
        partly = any(document.counted is not None for document in batch)
        # verbose=False: that a document is longer than the model's context is no news here.
        encoded = tokenizer(
            [document.text for document in batch],
            add_special_tokens=special_tokens,
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
