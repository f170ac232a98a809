"""A tokenised corpus: documents cut into samples of at most `max_length` tokens, numbered in reading order."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arwkv_producer.documents import Document

DOCUMENTS_PER_BATCH = 256


@dataclass(frozen=True)
class Corpus:
    """Every sample's tokens, held in memory at 4 bytes a token."""

    tokens: NDArray[np.int32]
    """[N] all samples' tokens, one after another."""
    starts: NDArray[np.int64]
    """[samples + 1] where each sample begins in `tokens`; the last entry is N."""
    sources: Sequence[str]
    """Per sample: its document, and `+offset` in tokens where it is not the document's beginning."""
    report: "CorpusReport"

    def __len__(self) -> int:
        return len(self.starts) - 1

    def sample_tokens(self, sample: int) -> NDArray[np.int32]:
        """[T] tokens of one sample."""
        return self.tokens[self.starts[sample] : self.starts[sample + 1]]

    def fingerprint(self) -> str:
        """sha256 over tokens and sample bounds."""
        digest = hashlib.sha256(self.starts.tobytes())
        digest.update(self.tokens.data)
        return digest.hexdigest()


@dataclass(frozen=True)
class CorpusReport:
    """What became of the documents. Nothing else was left out."""

    documents: int
    """Read."""
    documents_cut: int
    """Longer than one sample."""
    documents_empty: int
    """Without a single token: left out."""


def tokenise(documents: Iterable[Document], tokenizer: Any, max_length: int) -> Corpus:
    """Tokenise with the teacher's tokenizer (transformers), special tokens as it adds them, and cut into samples.

    A document of n tokens makes ceil(n / max_length) samples that together hold each of its tokens once, in order.
    """
    pieces: list[NDArray[np.int32]] = []
    sources: list[str] = []
    read = cut = empty = 0
    for document, ids in _token_ids(documents, tokenizer):
        read += 1
        cut += len(ids) > max_length
        empty += len(ids) == 0
        for start in range(0, len(ids), max_length):
            pieces.append(ids[start : start + max_length])
            sources.append(document.source + (f"+{start}" if start else ""))
    return Corpus(
        tokens=np.concatenate([np.empty(0, np.int32), *pieces]),
        starts=np.cumsum([0, *map(len, pieces)], dtype=np.int64),
        sources=sources,
        report=CorpusReport(documents=read, documents_cut=cut, documents_empty=empty),
    )


def _token_ids(documents: Iterable[Document], tokenizer: Any) -> Iterator[tuple[Document, NDArray[np.int32]]]:
    remaining = iter(documents)
    while batch := list(itertools.islice(remaining, DOCUMENTS_PER_BATCH)):
        # verbose=False: that a document is longer than the model's context is no news here.
        encoded = tokenizer([document.text for document in batch], return_attention_mask=False, verbose=False)
        for document, ids in zip(batch, encoded["input_ids"], strict=True):
            yield document, np.asarray(ids, dtype=np.int32)
