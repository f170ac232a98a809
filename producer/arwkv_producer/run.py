"""The producer's run: capture part after part, write each while the next is captured."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from arwkv_producer.config import GenerateConfig
from arwkv_producer.engine import EngineConfig, TeacherEngine, prepare_environment
from arwkv_producer.identity import hidden_names
from arwkv_producer.job import Job, all_true, prepare, report_corpus
from arwkv_producer.samples import BadCapture, to_sample
from arwkv_producer.shard_queue import ShardQueue
from arwkv_store import Sample, ShardManifest, create_dataset
from arwkv_store.errors import TryAgain
from arwkv_store.progress import Progress

CALL_TOKENS = 1 << 16
"""Tokens sent to the engine in one call: enough to fill its steps, few enough that the bar moves."""
BAD_IN_A_ROW = 5
"""Samples without a usable answer after which the run gives up."""


def generate(config: GenerateConfig) -> dict[str, Any]:
    """Make the missing parts that are this rank's. Returns the run's summary.

    Raises UsageError and its kin before the engine starts, BadCapture where the teacher's answers cannot be used, and
    TryAgain after SIGTERM, once the part in hand is committed.
    """
    began = time.monotonic()
    prepare_environment(config.tensor_parallel, config.verbose)
    job = prepare(config)
    report_corpus(job)
    writer = create_dataset(config.out, job.info)
    own = [part for part in writer.missing_parts() if part % config.world_size == config.rank]
    committed: list[ShardManifest] = []
    capture_s = 0.0
    if own:
        with _stop_requested() as stopping, _start_engine(config, job) as engine:
            capture_began = time.monotonic()
            total = sum(map(job.part_tokens, own))
            with Progress("producer", total) as bar, ShardQueue(writer, _counting(bar, committed)) as shards:
                failed = _capture_parts(job, engine, own, shards, bar, stopping)
            capture_s = time.monotonic() - capture_began
        if failed:
            raise BadCapture(f"{len(failed)} shards not written; first: {next(iter(failed.values()))}")
        if len(committed) < len(own):
            raise TryAgain(f"stopped with {len(own) - len(committed)} shards to do; the same command continues")
    return _summary(config, job, committed, seconds=time.monotonic() - began, capture_s=capture_s)


def _capture_parts(
    job: Job, engine: TeacherEngine, parts: list[int], shards: ShardQueue, bar: Progress, stopping: Callable[[], bool]
) -> dict[int, str]:
    """Hand each part's samples to the writer. Answers the parts that could not be captured, with the reason."""
    failed: dict[int, str] = {}
    in_a_row = 0
    for part in parts:
        if stopping():
            break
        samples: list[Sample] = []
        for sample in _capture_samples(job, engine, job.part_samples(part), bar):
            if isinstance(sample, Sample):
                in_a_row = 0
                samples.append(sample)
                continue
            in_a_row += 1
            failed.setdefault(part, str(sample))
            print(f"producer: {sample}", file=sys.stderr)
            if in_a_row == BAD_IN_A_ROW:
                raise BadCapture(f"gave up after {BAD_IN_A_ROW} bad samples in a row; last: {sample}")
        if part not in failed:
            shards.put(part, samples)
    return failed


def _capture_samples(job: Job, engine: TeacherEngine, ids: range, bar: Progress) -> Iterator[Sample | BadCapture]:
    """A part's samples in order, captured in calls of about CALL_TOKENS; a bad one is tried once more by itself."""
    for call in _calls(job, ids):
        tokens = [job.corpus.sample_tokens(sample_id) for sample_id in call]
        for sample_id, rows in zip(call, engine.capture(tokens, call), strict=True):
            try:
                yield _build(job, sample_id, rows)
            except BadCapture:
                (rows,) = engine.capture([job.corpus.sample_tokens(sample_id)], [sample_id])
                try:
                    yield _build(job, sample_id, rows)
                except BadCapture as bad:
                    yield bad
        bar.advance(sum(map(len, tokens)))


def _calls(job: Job, ids: range) -> Iterator[list[int]]:
    call: list[int] = []
    size = 0
    for sample_id in ids:
        call.append(sample_id)
        size += len(job.corpus.sample_tokens(sample_id))
        if size >= CALL_TOKENS:
            yield call
            call, size = [], 0
    if call:
        yield call


def _build(job: Job, sample_id: int, rows: Any) -> Sample:
    capture = job.info.capture
    distribution = ("ids", "logprobs", "tail_logprob", "entropy", "true_logprob") if capture.top_k else ()
    tokens = job.corpus.sample_tokens(sample_id)
    return to_sample(
        sample_id,
        tokens,
        all_true(len(tokens)),
        job.corpus.sources[sample_id],
        rows,
        expected=(*distribution, *hidden_names(capture)),
        top_p=capture.top_p,
    )


def _start_engine(config: GenerateConfig, job: Job) -> TeacherEngine:
    print(f"starting vLLM with {job.teacher.name}", file=sys.stderr)
    return TeacherEngine(
        EngineConfig(
            model=job.teacher.model,
            architecture=job.teacher.architecture,
            head_size=job.teacher.head_size,
            revision=job.teacher.revision,
            dtype=job.info.teacher.dtype,
            max_length=config.max_length,
            step_tokens=config.step_tokens,
            tensor_parallel=config.tensor_parallel,
            gpu_memory_fraction=config.gpu_memory_fraction,
            verbose=config.verbose,
        ),
        job.capture_settings(),
    )


def _counting(bar: Progress, committed: list[ShardManifest]) -> Callable[[ShardManifest], None]:
    def count(manifest: ShardManifest) -> None:
        committed.append(manifest)
        bar.advance(0, size_bytes=manifest.size_bytes, note=f"part {manifest.part}")

    return count


@contextmanager
def _stop_requested() -> Iterator[Callable[[], bool]]:
    """Inside the block SIGTERM only sets what the yielded function answers."""
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, before)


def _summary(
    config: GenerateConfig, job: Job, committed: list[ShardManifest], seconds: float, capture_s: float
) -> dict[str, Any]:
    columns: dict[str, int] = {}
    for manifest in committed:
        for column, size_bytes in manifest.stats.bytes_by_column.items():
            columns[column] = columns.get(column, 0) + size_bytes
    tokens = sum(manifest.tokens for manifest in committed)
    return {
        "dataset": config.out,
        "tokens": tokens,
        "samples": sum(manifest.rows for manifest in committed),
        "shards": len(committed),
        "shards_present_before": job.info.corpus.parts - len(committed) if config.world_size == 1 else None,
        "tokens_per_s": tokens / capture_s if capture_s else 0.0,
        "bytes_by_column": columns,
        "size_bytes": sum(manifest.size_bytes for manifest in committed),
        "seconds": seconds,
        "capture_s": capture_s,
        "corpus": {
            **asdict(job.corpus.report),
            "samples": len(job.corpus),
            "tokens": len(job.corpus.tokens),
            "shards": job.info.corpus.parts,
        },
    }
