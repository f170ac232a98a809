"""A tokenized corpus: documents split into samples of at most `max_length` tokens, numbered in reading order."""

import hashlib
import itertools
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from arwkv_producer.text.conversations import Document
from arwkv_producer.text.encoding import Encoded, encode
from arwkv_producer.text.mixing import Counts, Mixer, Placed, Rules, SeenInMemory, split
from arwkv_producer.text.report import CorpusReport
from arwkv_store import Sample

DOCUMENTS_PER_BATCH = 256


class Texts(Protocol):
    """The samples of a corpus, in memory or in a dataset of tokens."""

    @property
    def report(self) -> CorpusReport:
        """What was read and left out."""

    @property
    def size(self) -> int:
        """Tokens of all samples together."""

    def __len__(self) -> int:
        """Samples."""

    def __getitem__(self, sample: int) -> Sample:
        """A sample's tokens, mask and source."""

    def tokens_between(self, first: int, end: int) -> int:
        """Tokens of the samples from `first` to before `end`."""

    def fingerprint(self) -> str:
        """sha256 over sample bounds, tokens and mask."""


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

    @property
    def size(self) -> int:
        """N, the tokens of all samples together."""
        return len(self.tokens)

    def __getitem__(self, sample: int) -> Sample:
        tokens, mask = self.sample_tokens(sample), self.sample_mask(sample)
        return Sample(sample_id=sample, tokens=tokens, loss_mask=mask, source=self.sources[sample])

    def sample_tokens(self, sample: int) -> NDArray[np.int32]:
        """[T] tokens of one sample."""
        return self.tokens[self.starts[sample] : self.starts[sample + 1]]

    def sample_mask(self, sample: int) -> NDArray[np.bool_]:
        """[T] loss mask of one sample."""
        return self.loss_mask[self.starts[sample] : self.starts[sample + 1]]

    def tokens_between(self, first: int, end: int) -> int:
        """Tokens of the samples from `first` to before `end`."""
        return int(self.starts[end] - self.starts[first])

    def fingerprint(self) -> str:
        """sha256 over sample bounds, tokens and mask."""
        digest = hashlib.sha256(self.starts.tobytes())
        digest.update(self.tokens.data)
        digest.update(self.loss_mask.data)
        return digest.hexdigest()


@dataclass
class _Building:
    """One corpus while documents arrive, in buffers that grow in place."""

    max_length: int
    tokens: "array[int]" = field(default_factory=lambda: array("i"))
    masks: bytearray = field(default_factory=bytearray)
    starts: "array[int]" = field(default_factory=lambda: array("q", [0]))
    sources: list[str] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)

    def add(self, placed: Placed) -> None:
        self.counts.add(placed, self.max_length)
        if not placed.duplicate:
            for ids, mask, source in split(placed.document, self.max_length):
                self.tokens.frombytes(ids.tobytes())
                self.masks += mask.tobytes()
                self.starts.append(len(self.tokens))
                self.sources.append(source)

    def corpus(self) -> Corpus:
        return Corpus(
            tokens=np.frombuffer(self.tokens, np.int32) if self.tokens else np.empty(0, np.int32),
            loss_mask=np.frombuffer(self.masks, np.bool_) if self.masks else np.empty(0, np.bool_),
            starts=np.frombuffer(self.starts, np.int64),
            sources=self.sources,
            report=self.counts.report(),
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

    `Mixer` says how several sources share the tokens, and which documents are held out or left out.
    """
    kept, apart = _Building(max_length), _Building(max_length)
    streams = [_Stream(documents, tokenizer, special_tokens) for documents in sources]
    mixer = Mixer(streams, Rules(max_length, tuple(weights), held_out, keep_duplicates), SeenInMemory())
    while (placed := mixer.next()) is not None:
        (apart if placed.held_out else kept).add(placed)
    corpus = kept.corpus()
    return replace(corpus, report=replace(corpus.report, documents_beyond_share=mixer.rest())), apart.corpus()


class _Stream:
    """One source's documents, tokenized a batch at a time."""

    def __init__(self, documents: Iterable[Document], tokenizer: Any, special_tokens: bool) -> None:
        self._documents = iter(documents)
        self._tokenizer, self._special_tokens = tokenizer, special_tokens
        self._waiting: deque[Encoded] = deque()

    def next(self) -> Encoded | None:
        """The next document, None after the last."""
        if not self._waiting:
            batch = list(itertools.islice(self._documents, DOCUMENTS_PER_BATCH))
            self._waiting.extend(encode(batch, self._tokenizer, special_tokens=self._special_tokens) if batch else ())
        return self._waiting.popleft() if self._waiting else None

    def rest(self) -> int:
        """How many documents are left, read to the end."""
        return len(self._waiting) + sum(1 for _ in self._documents)
