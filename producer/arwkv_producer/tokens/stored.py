"""A dataset whose samples a teacher reads again: one of tokens alone, or an earlier capture."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from arwkv_producer.text.kinds import KNOWN, kind_of
from arwkv_producer.text.report import CorpusReport
from arwkv_store import Dataset, DatasetInfo, Sample, open_dataset
from arwkv_store.errors import NotFound, TryAgain, UsageError
from arwkv_store.format.layout import CORPUS_FILE, DATASET_FILE


@dataclass(frozen=True)
class Length:
    """A length that a dataset had when a run of `producer tokenise` ended."""

    samples: int
    tokens: int
    shards: int
    fingerprint: str
    """As of a corpus in memory: the same samples have the same one."""


@dataclass(frozen=True)
class StoredCorpus:
    """The first samples of a dataset, read when they are asked for."""

    dataset: Dataset
    length: Length
    report: CorpusReport

    def __len__(self) -> int:
        return self.length.samples

    @property
    def size(self) -> int:
        """Tokens of all samples together."""
        return self.length.tokens

    def __getitem__(self, sample: int) -> Sample:
        return self.dataset[sample]

    def tokens_between(self, first: int, end: int) -> int:
        """Tokens of the samples from `first` to before `end`: exact between parts, in proportion within one."""
        return round(self._tokens_before(end) - self._tokens_before(first))

    def _tokens_before(self, sample: int) -> float:
        rows, tokens = self.dataset.shard_rows, self.dataset.shard_tokens
        before = np.concatenate([[0], np.cumsum(rows)])
        return float(np.interp(sample, before, np.concatenate([[0], np.cumsum(tokens)])))

    def fingerprint(self) -> str:
        """sha256 over sample bounds, tokens and mask, as it was recorded."""
        return self.length.fingerprint

    @property
    def info(self) -> DatasetInfo:
        """The dataset's identity."""
        return self.dataset.info


def stored_corpus(data: Sequence[str], present: DatasetInfo | None = None) -> StoredCorpus | None:
    """The dataset that is the one word of `--data`; None if the words name text.

    Of a dataset that has grown, the whole, or the beginning that a `present` capture of it was begun with. Raises
    UsageError for a dataset beside other text, TryAgain for one that is not complete.
    """
    datasets = [word for word in data if _is_dataset(word)]
    if not datasets:
        return None
    if len(data) > 1:
        raise UsageError(f"--data {datasets[0]}: a dataset, which is not mixed with text; name it alone")
    name = datasets[0] if "://" in datasets[0] else str(Path(datasets[0]).absolute())
    dataset = open_dataset(name, columns=())
    report = json.loads(dataset.beside().get(CORPUS_FILE, b"{}"))
    length = _length(datasets[0], dataset, report, present)
    known = {field.name for field in fields(CorpusReport)}
    return StoredCorpus(dataset, length, CorpusReport(**{name: report[name] for name in report.keys() & known}))


def _is_dataset(word: str) -> bool:
    if "://" not in word:
        return (Path(word) / DATASET_FILE).is_file()
    if kind_of(word) in KNOWN:
        return False
    try:
        open_dataset(word, columns=())
    except (NotFound, UsageError):
        return False
    return True


def _length(name: str, dataset: Dataset, report: dict[str, Any], present: DatasetInfo | None) -> Length:
    corpus = dataset.info.corpus
    if not corpus.grows:
        length = Length(corpus.samples, corpus.tokens, corpus.parts, corpus.fingerprint)
    elif not (lengths := [Length(**known) for known in report.get("lengths", ())]):
        raise TryAgain(f"--data {name}: it is not complete; run its producer tokenise again, then this command")
    else:
        begun = None if present is None else present.corpus.fingerprint
        length = next((known for known in lengths if known.fingerprint == begun), lengths[-1])
    if len(dataset.shards) < length.shards:
        raise TryAgain(
            f"--data {name}: {len(dataset.shards)} of its {length.shards} parts are there; make the others first, with "
            "the command that made it"
        )
    return length


def fingerprint_of(dataset: Dataset) -> str:
    """sha256 over sample bounds (int64), tokens and mask of all samples, as of a corpus in memory.

    Reads the dataset three times, with the memory of a part.
    """
    digest = hashlib.sha256(np.zeros(1, np.int64).tobytes())
    end = 0
    for lengths, _, _ in dataset.texts():
        ends = end + np.cumsum(lengths, dtype=np.int64)
        digest.update(ends.data)
        end = int(ends[-1])
    for _, tokens, _ in dataset.texts():
        digest.update(tokens.data)
    for _, _, mask in dataset.texts():
        digest.update(mask.data)
    return digest.hexdigest()
