"""Everything that can be checked and computed before the teacher's weights load."""

import hashlib
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arwkv_producer.capture import CaptureSettings
from arwkv_producer.config import GenerateConfig
from arwkv_producer.conversations import chat_documents, plain_documents
from arwkv_producer.corpus import Corpus, tokenise
from arwkv_producer.documents import Source, find_sources, read_records
from arwkv_producer.identity import bytes_per_token, capture_info, dataset_info, require_fitting
from arwkv_producer.teacher import Teacher, find_teacher, require_weights, weights_hash
from arwkv_producer.tokenizer import load_tokenizer, real_vocab_size, tokenizer_files
from arwkv_store import DatasetInfo
from arwkv_store.errors import UsageError
from arwkv_store.schema import TokenizerInfo
from arwkv_store.vocabulary import vocabulary_hash

ROOM_TO_USE = 0.9
"""Share of the free disk that a dataset may take without --fill-disk."""


@dataclass(frozen=True)
class Job:
    """A run, checked: what to capture, of what, into which dataset."""

    teacher: Teacher
    corpus: Corpus
    info: DatasetInfo
    out: str
    tokenizer_files: Mapping[str, bytes] = field(default_factory=dict)

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
            top_k=capture.top_k or (1 if capture.samples else 0),
            draws=capture.samples or 0,
            draws_outside_top_k=capture.logits == "hybrid",
            vocab_size=self.info.tokenizer.vocab_size,
            attention_layers=capture.layers if capture.hidden_states == "attention" else (),
            boundary_layers=capture.layers if capture.hidden_states == "boundaries" else (),
            final=capture.hidden_states == "final",
        )


def prepare(config: GenerateConfig) -> list[Job]:
    """Check teacher, flags, output and text, cheapest first; answers the main dataset's job, then the held-out one's.

    Raises UsageError or NotFound; writes nothing.
    """
    teacher = find_teacher(config.teacher)
    sources = find_sources(config.data, config.split)
    _require_writable(config.out)
    tokenizer = load_tokenizer(teacher)
    vocab_size = real_vocab_size(tokenizer)
    require_fitting(config, teacher, vocab_size)
    require_weights(teacher)
    field = config.field or ("messages" if config.chat else "text")
    records = read_records(sources, field)
    corpora = tokenise(
        chat_documents(records, field, tokenizer) if config.chat else plain_documents(records, field),
        tokenizer,
        config.max_length,
        special_tokens=not config.chat,
        keep_duplicates=config.keep_duplicates,
        held_out=config.held_out,
    )
    if len(corpora[0]) == 0:
        raise UsageError(f"--data {' '.join(config.data)}: no text in {len(sources)} sources; name some that hold text")
    if not config.fill_disk:
        _require_room(config, teacher, sum(len(corpus.tokens) for corpus in corpora))
    tokenizer_info = TokenizerInfo(hash=vocabulary_hash(tokenizer.get_vocab()), vocab_size=vocab_size)
    teacher_hash, description = weights_hash(teacher), _description(config, sources, tokenizer)
    files = tokenizer_files(tokenizer)
    return [
        Job(
            teacher,
            corpus,
            dataset_info(config, teacher, tokenizer_info, corpus, description, teacher_hash),
            out,
            files,
        )
        for corpus, out in zip(corpora, (config.out, config.out.rstrip("/") + "-held-out"), strict=True)
        if len(corpus)
    ]


def _description(config: GenerateConfig, sources: list[Source], tokenizer: Any) -> str:
    names = [source.name for source in sources]
    described = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if config.held_out:
        described += f"; held out {config.held_out}"
    if config.chat:
        described += f"; chat template {hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16]}"
    return described


def report_corpus(job: Job) -> None:
    """Say on stderr what was read, what was cut and what was left out."""
    report = job.corpus.report
    notes = [
        f", {count:,} {what}"
        for count, what in (
            (report.documents_cut, f"longer than {job.info.capture.max_length} tokens cut"),
            (report.documents_empty, "empty left out"),
            (report.documents_duplicate, "duplicates left out"),
        )
        if count
    ]
    print(
        f"{job.out}: {report.documents:,} documents{''.join(notes)}: {len(job.corpus):,} samples, "
        f"{len(job.corpus.tokens):,} tokens in {job.info.corpus.parts:,} shards",
        file=sys.stderr,
    )


def _require_room(config: GenerateConfig, teacher: Teacher, tokens: int) -> None:
    """Raise UsageError where the whole dataset would take more than 90% of the room there is for it."""
    if "://" in config.out:
        return
    folder = Path(config.out).expanduser().absolute()
    needed = sum(bytes_per_token(capture_info(config, teacher), teacher.width).values()) * tokens
    present = sum(file.stat().st_size for file in folder.glob("shards/*"))
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    if needed - present > ROOM_TO_USE * free:
        raise UsageError(
            f"--out {config.out}: the shards take about {needed / 1e9:,.1f} GB and {free / 1e9:,.1f} GB are free; "
            "choose fewer layers or another disk, or say --fill-disk"
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
