"""Everything that can be checked and computed before the teacher's weights load."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from arwkv_producer.config import GenerateConfig
from arwkv_producer.run.identity import dataset_info, require_fitting, teacher_dtype
from arwkv_producer.run.output_folder import both_places, present_info, require_room, require_writable
from arwkv_producer.teacher.capture import CaptureSettings
from arwkv_producer.teacher.teacher import Teacher, find_teacher, require_weights, weights_hash
from arwkv_producer.text.chosen import described, field_of, print_report, require_text, shares_of, with_files
from arwkv_producer.text.conversations import chat_documents, plain_documents
from arwkv_producer.text.corpus import Corpus, Texts, tokenize
from arwkv_producer.text.reading import read_records
from arwkv_producer.text.sources import Share
from arwkv_producer.text.tokenizer import load_tokenizer, real_vocab_size, rust_tokenizer, tokenizer_files
from arwkv_producer.tokens.stored import StoredCorpus, stored_corpus
from arwkv_store import DatasetInfo
from arwkv_store.commands.progress import working
from arwkv_store.errors import UsageError
from arwkv_store.format.schema import TokenizerInfo
from arwkv_store.format.vocabulary import vocabulary_hash

MUCH_TEXT_TOKENS = 200_000_000
"""A corpus above this size is better tokenized first: it takes a gigabyte in every rank."""


@dataclass(frozen=True)
class Job:
    """A checked run: the teacher, the text, what to capture and the dataset to write."""

    teacher: Teacher
    corpus: Texts
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
        return self.corpus.tokens_between(samples.start, samples.stop)

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
    outs = both_places(config.out)
    present = [present_info(out) for out in outs]
    stored = stored_corpus(config.data, present[0])
    shares = [] if stored else shares_of(config, config.data)
    require_writable(config.out)
    with working("loading the tokenizer"):
        tokenizer = load_tokenizer(teacher)
    vocab_size = real_vocab_size(tokenizer)
    require_fitting(config, teacher, tokenizer)
    require_weights(teacher)
    tokenizer_info = TokenizerInfo(hash=vocabulary_hash(tokenizer.get_vocab()), vocab_size=vocab_size)
    corpora: Sequence[Texts]
    if stored is not None:
        _require_tokenizer_of(stored, config, tokenizer_info)
        corpora, description = [stored], stored.info.corpus.description
    else:
        with working("reading and tokenizing the text"):
            corpora = _read(config, shares, tokenizer)
        require_text(config, config.data, shares, corpora[0].report, corpora[0].size)
        description = described(config, shares, tokenizer)
    if not config.fill_disk and not config.dry_run:
        require_room(config, teacher, sum(corpus.size for corpus in corpora))
    files = tokenizer_files(tokenizer)
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
        for corpus, out, begun in zip(corpora, outs, present, strict=False)
        if len(corpus)
    ]


def _read(config: GenerateConfig, shares: Sequence[Share], tokenizer: Any) -> tuple[Corpus, Corpus]:
    """The corpus and its held-out documents."""
    field = field_of(config)
    streams = [read_records(share.sources, field) for share in shares]
    corpora = tokenize(
        [
            chat_documents(records, field, tokenizer) if config.chat else plain_documents(records, field)
            for records in streams
        ],
        rust_tokenizer(tokenizer),
        config.max_length,
        weights=[share.weight for share in shares],
        special_tokens=not config.chat,
        keep_duplicates=config.keep_duplicates,
        held_out=config.held_out,
    )
    kept, apart = (replace(corpus, report=with_files(corpus.report, shares)) for corpus in corpora)
    return kept, apart


def fitted(config: GenerateConfig) -> GenerateConfig:
    """The command with the sample length of the dataset that `--data` names, if it names one.

    Raises UsageError for flags that say how text is read: the dataset's samples are what they are.
    """
    stored = stored_corpus(config.data)
    if stored is None:
        return config
    for flag in ("chat", "field", "held_out", "keep_duplicates"):
        if getattr(config, flag) != GenerateConfig.__dataclass_fields__[flag].default:
            name = flag.replace("_", "-")
            raise UsageError(f"--{name}: {config.data[0]} is tokenized already; leave --{name} out")
    length, default = stored.info.capture.max_length, GenerateConfig.__dataclass_fields__["max_length"].default
    if config.max_length not in (length, default):
        raise UsageError(
            f"--max-length {config.max_length}: the samples of {config.data[0]} have up to {length} tokens; leave "
            "--max-length out"
        )
    return replace(config, max_length=length)


def _require_tokenizer_of(stored: StoredCorpus, config: GenerateConfig, tokenizer: TokenizerInfo) -> None:
    if stored.info.tokenizer.hash != tokenizer.hash:
        raise UsageError(
            f"--data {config.data[0]}: tokenized with the tokenizer of {stored.info.teacher.model} "
            f"({stored.info.tokenizer.hash[:16]}), which is not that of --teacher {config.teacher} "
            f"({tokenizer.hash[:16]}); name the text itself, or tokenise it for this teacher"
        )


def report_corpus(job: Job) -> None:
    """Print on stderr what was read, split and left out."""
    corpus, info = job.corpus, job.info
    print_report(job.out, corpus.report, info.capture.max_length, len(corpus), corpus.size, info.corpus.parts)
    if isinstance(corpus, Corpus) and corpus.size > MUCH_TEXT_TOKENS:
        print(
            f"  every rank holds these {corpus.size:,} tokens in memory; producer tokenise makes a dataset of them "
            "that --data can name",
            file=sys.stderr,
        )
