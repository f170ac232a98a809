"""`producer tokenise`: text as a dataset of tokens alone, written part by part, that grows when the text does."""

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from arwkv_producer.config import TokeniseConfig
from arwkv_producer.run.identity import recorded_command, teacher_info, versions
from arwkv_producer.run.output_folder import both_places, require_writable
from arwkv_producer.teacher.teacher import Teacher, find_teacher
from arwkv_producer.text.chosen import (
    described,
    field_of,
    print_report,
    require_text,
    shares_of,
    template_hash,
    weights_of,
    with_files,
)
from arwkv_producer.text.mixing import Counts, Placed, Rules
from arwkv_producer.text.report import CorpusReport
from arwkv_producer.text.sources import Share
from arwkv_producer.text.tokenizer import load_tokenizer, real_vocab_size, rust_tokenizer, tokenizer_files
from arwkv_producer.tokens.filling import SAMPLES_PER_PART, Output, fill, make_again, missing_pieces
from arwkv_producer.tokens.journal import Cut, Journal, journal_path
from arwkv_producer.tokens.stored import Length, fingerprint_of
from arwkv_producer.tokens.stream import ShareStream
from arwkv_producer.tokens.workers import Encoder, Encoders
from arwkv_store import CaptureInfo, CorpusInfo, DatasetInfo, ShardManifest, TokenizerInfo, create_dataset, open_dataset
from arwkv_store.commands.progress import Progress, working
from arwkv_store.dataset.writer import Writer
from arwkv_store.errors import NotFound
from arwkv_store.format.layout import CORPUS_FILE
from arwkv_store.format.vocabulary import vocabulary_hash


@dataclass(frozen=True)
class _Job:
    """A checked command."""

    config: TokeniseConfig
    teacher: Teacher
    tokenizer: Any
    shares: Sequence[Share]
    rules: Rules

    def info(self, role: str) -> DatasetInfo:
        """The identity of the dataset of `role`: "kept" or "held out"."""
        config, tokenizer = self.config, self.tokenizer
        return DatasetInfo(
            teacher=teacher_info(self.teacher, self.teacher.dtype),
            tokenizer=TokenizerInfo(hash=vocabulary_hash(tokenizer.get_vocab()), vocab_size=real_vocab_size(tokenizer)),
            vocab_size_padded=max(self.teacher.head_rows, real_vocab_size(tokenizer)),
            capture=CaptureInfo(logits="none", logits_codec="none", max_length=config.max_length),
            corpus=CorpusInfo(
                fingerprint=f"{role}; {self.told_rules()}",
                samples=0,
                tokens=0,
                samples_per_part=SAMPLES_PER_PART,
                parts=0,
                description=described(config, self.shares, tokenizer),
            ),
            command=recorded_command(config),
            versions=versions("none"),
            created_by="arwkv producer tokenise",
        )

    def encoder(self) -> Encoder:
        """What each process does with records."""
        config = self.config
        return Encoder(rust_tokenizer(self.tokenizer), field_of(config), self.tokenizer if config.chat else None)

    def recorded_rules(self) -> str:
        """All that decides what the rows are, but for the text."""
        tokenizer = vocabulary_hash(self.tokenizer.get_vocab())[:16]
        return f"{self.told_rules()}, max length {self.rules.max_length}, tokenizer {tokenizer}"

    def told_rules(self) -> str:
        """How documents become rows, in words: what is recorded, and compared when the dataset grows."""
        rules = self.rules
        told = [
            f"held out {rules.held_out:g}",
            "duplicates kept" if rules.keep_duplicates else "duplicates left out",
            f"field {field_of(self.config)}",
        ]
        if self.config.chat:
            told.append(f"chat template {template_hash(self.tokenizer)}")
        if len(self.shares) > 1:
            told.append(f"shares {weights_of(self.shares)}")
        return ", ".join(told)


def tokenise(config: TokeniseConfig) -> dict[str, Any]:
    """Make the dataset, or what it lacks, or what was appended to its text. Returns the summary of the run.

    Raises UsageError, NotFound and ConfigurationDiffers before anything is written, TryAgain if a process dies or
    another one makes the dataset, KeyboardInterrupt after SIGTERM or Ctrl-C: the same command continues.
    """
    began, began_at_s = time.monotonic(), time.time()
    job = _prepare(config)
    outs = both_places(config.out)
    infos = job.info("kept"), job.info("held out")
    present = [_present_parts(out, info) for out, info in zip(outs, infos, strict=True)]
    made: tuple[list[ShardManifest], list[ShardManifest]] = [], []
    with (
        _stopped_by_sigterm(),
        closing(Journal(journal_path(config.out), job.recorded_rules())) as journal,
        closing(Encoders(job.encoder(), _workers(config))) as encoders,
        Progress("tokenise", None) as progress,
    ):

        def committed(at: int, manifest: ShardManifest) -> None:
            progress.advance(0, size_bytes=manifest.size_bytes, note=f"part {manifest.part}")
            made[at].append(manifest)

        def output(at: int) -> Output:
            begin, made_one = partial(_begun, outs[at], infos[at], job), partial(committed, at)
            return Output(begin, present[at], made_one)

        def tell(placed: Placed) -> None:
            progress.advance(len(placed.document.ids))

        outputs = output(0), output(1)
        streams = _streams(job, encoders, journal)
        _mend(job, encoders, journal, outputs, present)
        totals = fill(journal, streams, job.rules, outputs, config.tokens_per_shard, tell)
    kept = replace(totals.kept.report(), documents_beyond_share=totals.beyond_share)
    reports = [with_files(report, job.shares) for report in (kept, totals.apart.report())]
    require_text(config, config.data, job.shares, reports[0], totals.kept.tokens)
    summaries = [
        _finish(out, report, counts, manifests, config.max_length, time.monotonic() - began, began_at_s)
        for out, report, counts, manifests in zip(outs, reports, (totals.kept, totals.apart), made, strict=True)
        if counts.samples
    ]
    summary, *held_out = summaries
    seconds = time.monotonic() - began
    return {**summary, "seconds": seconds, **({"held_out": held_out[0]} if held_out else {})}


def _prepare(config: TokeniseConfig) -> _Job:
    teacher = find_teacher(config.teacher)
    shares = shares_of(config, config.data)
    require_writable(config.out)
    with working("loading the tokenizer"):
        tokenizer = load_tokenizer(teacher)
    weights = tuple(share.weight for share in shares)
    return _Job(
        config, teacher, tokenizer, shares, Rules(config.max_length, weights, config.held_out, config.keep_duplicates)
    )


def _workers(config: TokeniseConfig) -> int:
    return config.workers or len(os.sched_getaffinity(0))


def _present_parts(out: str, info: DatasetInfo) -> set[int]:
    """The parts that are there. Raises ConfigurationDiffers if they are another dataset's."""
    try:
        open_dataset(out, columns=())
    except NotFound:
        return set()
    return create_dataset(out, info).committed_parts()


def _begun(out: str, info: DatasetInfo, job: _Job) -> Writer:
    writer = create_dataset(out, info)
    for name, content in tokenizer_files(job.tokenizer).items():
        writer.put_beside(name, content)
    return writer


def _streams(job: _Job, encoders: Encoders, journal: Journal, again: Cut | None = None) -> list[ShareStream]:
    """A stream of each share from the last cut on, or from one whose piece is made again."""
    last = journal.last_cut()
    cut = again or (None if last is None else last[1])
    positions = cut.positions if cut is not None else ((0, 0),) * len(job.shares)
    return [
        ShareStream(
            number,
            share.sources,
            encoders,
            journal,
            position,
            extend=job.config.extend,
            again=again is not None,
        )
        for number, (share, position) in enumerate(zip(job.shares, positions, strict=True))
    ]


def _mend(
    job: _Job, encoders: Encoders, journal: Journal, outputs: tuple[Output, Output], present: Sequence[set[int]]
) -> None:
    """Make parts again that were committed once and are gone."""
    last = journal.last_cut()
    if last is None:
        return
    kept, apart = last[1].kept.part, last[1].apart.part
    missing = set(range(kept)) - present[0], set(range(apart)) - present[1]
    for piece in missing_pieces(journal, missing) if any(missing) else ():
        make_again(journal, _streams(job, encoders, journal, piece[1]), job.rules, outputs, piece)


def _finish(
    out: str,
    report: CorpusReport,
    counts: Counts,
    made: Sequence[ShardManifest],
    max_length: int,
    seconds: float,
    began_at_s: float,
) -> dict[str, Any]:
    """Record the length that the dataset has now and when it grew, report the corpus, and return the summary."""
    dataset = open_dataset(out, columns=())
    present = json.loads(dataset.beside().get(CORPUS_FILE, b"{}"))
    known, extended = present.get("lengths", []), present.get("extended", [])
    shards = len(dataset.shards)
    before = known[-1]["shards"] if known else 0
    if [(length["samples"], length["shards"]) for length in known[-1:]] != [(len(dataset), shards)]:
        with working("reading the dataset back"):
            known.append(asdict(Length(len(dataset), dataset.tokens, shards, fingerprint_of(dataset))))
        # An earlier run that was stopped began it, if that run made its first part.
        is_whole = any(manifest.part == before for manifest in made)
        extended.append({"shards": shards, "began_at_s": began_at_s if is_whole else None, "ended_at_s": time.time()})
        document = json.loads(report.to_bytes(len(dataset), dataset.tokens))
        document |= {"shards": shards, "lengths": known, "extended": extended}
        create_dataset(out, dataset.info).replace_beside(CORPUS_FILE, json.dumps(document, indent=2).encode() + b"\n")
    print_report(out, report, max_length, counts.samples, counts.tokens, shards)
    tokens = sum(manifest.tokens for manifest in made)
    return {
        "dataset": out,
        "tokens": tokens,
        "samples": sum(manifest.rows for manifest in made),
        "shards": len(made),
        "shards_present_before": shards - len(made),
        "tokens_per_s": tokens / seconds,
        "size_bytes": sum(manifest.size_bytes for manifest in made),
        "corpus": {**asdict(report), "samples": counts.samples, "tokens": counts.tokens, "shards": shards},
    }


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Inside the block SIGTERM ends the run as Ctrl-C does."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
