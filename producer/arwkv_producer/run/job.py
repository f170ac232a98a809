"""Everything that can be checked and computed before the teacher's weights load."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from arwkv_producer.config import GenerateConfig
from arwkv_producer.run.identity import dataset_info, require_fitting, teacher_dtype
from arwkv_producer.run.output_folder import present_info, require_room, require_writable
from arwkv_producer.teacher.capture import CaptureSettings
from arwkv_producer.teacher.teacher import Teacher, find_teacher, require_weights, weights_hash
from arwkv_producer.text.conversations import chat_documents, plain_documents
from arwkv_producer.text.corpus import Corpus, tokenize
from arwkv_producer.text.reading import read_records
from arwkv_producer.text.sources import Share, find_shares, printable
from arwkv_producer.text.tokenizer import load_tokenizer, real_vocab_size, tokenizer_files
from arwkv_store import DatasetInfo
from arwkv_store.commands.progress import working
from arwkv_store.errors import UsageError
from arwkv_store.format.schema import TokenizerInfo
from arwkv_store.format.vocabulary import vocabulary_hash


@dataclass(frozen=True)
class Job:
    """A checked run: the teacher, the text, what to capture and the dataset to write."""

    teacher: Teacher
    corpus: Corpus
    info: DatasetInfo
    out: str
    tokenizer_files: Mapping[str, bytes] = field(default_factory=dict)
    writers: int = 1
    """Parts that are encoded and written at the same time."""

    def part_samples(self, part: int) -> range:
        """Sample ids of a part: a pure function of the dataset's identity."""
        per_part = self.info.corpus.samples_per_part
        return range(part * per_part, min((part + 1) * per_part, len(self.corpus)))

    def part_tokens(self, part: int) -> int:
        samples = self.part_samples(part)
        return int(self.corpus.starts[samples.stop] - self.corpus.starts[samples.start])

    def capture_settings(self) -> CaptureSettings:
        """Settings for the worker."""
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
    """Check teacher, flags, output and text, cheapest first. Returns the main dataset's job, then the held-out one's.

    Raises UsageError or NotFound; writes nothing.
    """
    teacher = find_teacher(config.teacher)
    shares = find_shares(config.data, config.split)
    if config.strict:
        _require_nothing_passed_over(shares)
    require_writable(config.out)
    with working("loading the tokenizer"):
        tokenizer = load_tokenizer(teacher)
    vocab_size = real_vocab_size(tokenizer)
    require_fitting(config, teacher, tokenizer)
    require_weights(teacher)
    with working("reading and tokenizing the text"):
        corpora = _read(config, shares, tokenizer)
    if len(corpora[0]) == 0:
        sources = sum(len(share.sources) for share in shares)
        raise UsageError(
            f"--data {' '.join(config.data)}: no text in {sources} sources; name sources that contain text"
        )
    _require_counted(config, corpora[0])
    if not config.fill_disk and not config.dry_run:
        require_room(config, teacher, sum(len(corpus.tokens) for corpus in corpora))
    tokenizer_info = TokenizerInfo(hash=vocabulary_hash(tokenizer.get_vocab()), vocab_size=vocab_size)
    description = _description(config, shares, tokenizer)
    files = tokenizer_files(tokenizer)
    outs = config.out, config.out.rstrip("/") + "-held-out"
    present = [present_info(out) for out in outs]
    with working("hashing the teacher's weights"):
        teacher_hash = weights_hash(teacher, None if present[0] is None else present[0].teacher.weights_hash)
    dtype = teacher_dtype(config, teacher, present[0] or present[1])
    return [
        Job(
            teacher,
            corpus,
            dataset_info(config, teacher, tokenizer_info, corpus, description, teacher_hash, dtype, begun),
            out,
            files,
            config.writers,
        )
        for corpus, out, begun in zip(corpora, outs, present, strict=True)
        if len(corpus)
    ]


def _read(config: GenerateConfig, shares: Sequence[Share], tokenizer: Any) -> tuple[Corpus, Corpus]:
    """The corpus and its held-out documents."""
    field = config.field or ("messages" if config.chat else "text")
    streams = [read_records(share.sources, field) for share in shares]
    corpora = tokenize(
        [
            chat_documents(records, field, tokenizer) if config.chat else plain_documents(records, field)
            for records in streams
        ],
        tokenizer,
        config.max_length,
        weights=[share.weight for share in shares],
        special_tokens=not config.chat,
        keep_duplicates=config.keep_duplicates,
        held_out=config.held_out,
    )
    files = [source.label for share in shares for source in share.sources]
    passed_over = {passed.name: passed.reason for share in shares for passed in share.passed_over}
    kept, apart = (
        replace(corpus, report=replace(corpus.report, files_read=files, files_passed_over=passed_over))
        for corpus in corpora
    )
    return kept, apart


def _require_nothing_passed_over(shares: Sequence[Share]) -> None:
    passed_over = [passed for share in shares for passed in share.passed_over]
    if passed_over:
        first = passed_over[0]
        raise UsageError(
            f"--strict: {len(passed_over)} files or folders would be skipped, first {first.name} ({first.reason}); "
            "name the files to read, or leave --strict out"
        )


def _require_counted(config: GenerateConfig, corpus: Corpus) -> None:
    """Raise UsageError if no token counts in the loss."""
    if not corpus.report.tokens_counted:
        told = "; ".join(corpus.report.lines(len(corpus.tokens)))
        way_out = "replies are turns of the role assistant" if config.chat else "documents need two tokens or more"
        raise UsageError(f"--data {' '.join(config.data)}: no token counts ({told}); {way_out}")


def _description(config: GenerateConfig, shares: Sequence[Share], tokenizer: Any) -> str:
    sources = [source for share in shares for source in share.sources]
    names = [source.label for source in sources]
    described = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if len(shares) > 1:
        described += f"; shares {', '.join(f'{Path(share.name).name} {share.weight:g}' for share in shares)}"
    if config.held_out:
        described += f"; held out {config.held_out}"
    if config.chat:
        described += f"; chat template {hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16]}"
    return printable(described)


def report_corpus(job: Job) -> None:
    """Print on stderr what was read, split and left out."""
    report = job.corpus.report
    notes = [
        f", {count:,} {what}"
        for count, what in (
            (report.documents_cut, f"longer than {job.info.capture.max_length} tokens cut"),
            (report.documents_empty, "empty or null left out"),
            (report.documents_duplicate, "duplicates left out"),
            (report.documents_beyond_share, "beyond their source's share left out"),
        )
        if count
    ]
    print(
        f"{job.out}: {report.documents:,} documents{''.join(notes)}: {len(job.corpus):,} samples, "
        f"{len(job.corpus.tokens):,} tokens in {job.info.corpus.parts:,} shards",
        *(f"  {line}" for line in report.lines(len(job.corpus.tokens))),
        sep="\n",
        file=sys.stderr,
    )
