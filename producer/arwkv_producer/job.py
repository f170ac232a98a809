"""Everything that can be checked and computed before the teacher's weights load."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arwkv_producer.capture import CaptureSettings
from arwkv_producer.config import GenerateConfig
from arwkv_producer.corpus import Corpus, tokenise
from arwkv_producer.documents import find_files, read_documents
from arwkv_producer.identity import dataset_info, require_fitting
from arwkv_producer.teacher import Teacher, find_teacher, load_tokenizer, real_vocab_size, require_weights, weights_hash
from arwkv_store import DatasetInfo
from arwkv_store.errors import UsageError
from arwkv_store.schema import TokenizerInfo
from arwkv_store.vocabulary import vocabulary_hash


@dataclass(frozen=True)
class Job:
    """A run, checked: what to capture, of what, into which dataset."""

    teacher: Teacher
    corpus: Corpus
    info: DatasetInfo

    def part_samples(self, part: int) -> range:
        """Sample ids of a part: a pure function of the dataset's identity."""
        per_part = self.info.corpus.samples_per_part
        return range(part * per_part, min((part + 1) * per_part, len(self.corpus)))

    def part_tokens(self, part: int) -> int:
        samples = self.part_samples(part)
        return int(self.corpus.starts[samples.stop] - self.corpus.starts[samples.start])

    def capture_settings(self) -> CaptureSettings:
        """What the worker is told."""
        capture = self.info.capture
        return CaptureSettings(
            top_k=capture.top_k or 0,
            vocab_size=self.info.tokenizer.vocab_size,
            attention_layers=capture.layers if capture.hidden_states == "attention" else (),
            boundary_layers=capture.layers if capture.hidden_states == "boundaries" else (),
            final=capture.hidden_states == "final",
        )


def prepare(config: GenerateConfig) -> Job:
    """Check teacher, flags, output and text, cheapest first. Raises UsageError or NotFound; writes nothing."""
    teacher = find_teacher(config.teacher)
    files = find_files(config.data)
    _require_writable(config.out)
    tokenizer = load_tokenizer(teacher)
    vocab_size = real_vocab_size(tokenizer)
    require_fitting(config, teacher, vocab_size)
    require_weights(teacher)
    corpus = tokenise(read_documents(files, config.field), tokenizer, config.max_length)
    if len(corpus) == 0:
        raise UsageError(f"--data {' '.join(config.data)}: no text in {len(files)} files; name files that hold some")
    description = f"{corpus.report.documents} documents of {', '.join(file.name for file in files[:3])}"
    description += f" and {len(files) - 3} more" if len(files) > 3 else ""
    info = dataset_info(
        config,
        teacher,
        TokenizerInfo(hash=vocabulary_hash(tokenizer.get_vocab()), vocab_size=vocab_size),
        corpus,
        description,
        weights_hash(teacher),
    )
    return Job(teacher=teacher, corpus=corpus, info=info)


def all_true(length: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """The loss mask of plain text: predicting every token counts."""
    return np.ones(length, dtype=np.bool_)


def report_corpus(job: Job) -> None:
    """Say on stderr what was read, what was cut and what was left out."""
    report = job.corpus.report
    cut = (
        f", {report.documents_cut:,} longer than {job.info.capture.max_length} tokens cut"
        if report.documents_cut
        else ""
    )
    empty = f", {report.documents_empty:,} empty left out" if report.documents_empty else ""
    print(
        f"{report.documents:,} documents{cut}{empty}: {len(job.corpus):,} samples, {len(job.corpus.tokens):,} tokens "
        f"in {job.info.corpus.parts:,} shards",
        file=sys.stderr,
    )


def _require_writable(out: str) -> None:
    """Raise UsageError unless a folder can be made, or written in, at `out`."""
    if "://" in out:
        return
    path = Path(out).expanduser().absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir():
        raise UsageError(f"--out {out}: {existing} is a file; name a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"--out {out}: {existing} is not writable; name another folder or change its permissions")
