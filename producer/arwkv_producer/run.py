"""The producer's run: capture part after part, write each while the next is captured."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arwkv_producer.account import Account
from arwkv_producer.config import GenerateConfig
from arwkv_producer.engine import TeacherEngine
from arwkv_producer.job import Job, prepare, report_corpus
from arwkv_producer.samples import BadCapture
from arwkv_producer.shard_queue import ShardQueue
from arwkv_producer.teacher_pass import Engine, TeacherPass
from arwkv_producer.tokenizer import write_tokenizer
from arwkv_producer.vllm_setup import EngineConfig, prepare_environment
from arwkv_store import ShardManifest, Writer, create_dataset
from arwkv_store.errors import ConfigurationDiffers, TryAgain

if TYPE_CHECKING:
    from arwkv_producer.stock_engine import StockEngine


@dataclass
class Work:
    """One dataset's share of a run."""

    job: Job
    writer: Writer
    missing: int
    """Parts that nobody had committed when the run began."""
    parts: list[int]
    """Those that are this rank's to make."""
    committed: list[ShardManifest] = field(default_factory=list)
    capture_s: float = 0.0

    @property
    def tokens(self) -> int:
        """Of the parts to make."""
        return sum(map(self.job.part_tokens, self.parts))


def generate(config: GenerateConfig) -> dict[str, Any]:
    """Make the missing parts that are this rank's. Returns the run's summary.

    Raises UsageError and its kin before the engine starts, BadCapture where the teacher's answers cannot be used, and
    TryAgain after SIGTERM, once the part in hand is committed.
    """
    began = time.monotonic()
    prepare_environment(config.tensor_parallel, config.verbose)
    with Account(config) as account:
        jobs = prepare(config)
        for job in jobs:
            report_corpus(job)
            account.corpus(job)
        works = [_share(config, job) for job in jobs]
        if any(work.parts for work in works):
            with _stop_requested() as stopping, closing(_start_engine(config, jobs[0])) as engine:
                account.begin(sum(work.tokens for work in works), sum(len(work.parts) for work in works))
                for work in works:
                    _capture(work, engine, account, stopping)
    summary, *held_out = [_summary(work) for work in works]
    return {**summary, "seconds": time.monotonic() - began, **({"held_out": held_out[0]} if held_out else {})}


def _share(config: GenerateConfig, job: Job) -> Work:
    writer = create_dataset(job.out, job.info)
    if writer.info.created_by != job.info.created_by:
        raise ConfigurationDiffers(
            f"{job.out}: begun by {writer.info.created_by}, asked of {job.info.created_by}; name another folder, or "
            "the --capture-backend that is there"
        )
    write_tokenizer(Path(job.out), job.tokenizer_files)
    missing = writer.missing_parts()
    return Work(job, writer, len(missing), [part for part in missing if part % config.world_size == config.rank])


def _capture(work: Work, engine: Engine, account: Account, stopping: Callable[[], bool]) -> None:
    """Capture and commit the work's parts, and account for each of them."""
    began = time.monotonic()

    def committed(manifest: ShardManifest) -> None:
        work.committed.append(manifest)
        account.committed(work.job.out, manifest)

    with ShardQueue(work.writer, committed) as shards:
        teacher_pass = TeacherPass(work.job, engine, account)
        for part in work.parts:
            if stopping():
                break
            samples = teacher_pass.capture_part(part)
            if samples is not None:
                shards.put(part, samples)
    work.capture_s = time.monotonic() - began
    if teacher_pass.failed:
        first = next(iter(teacher_pass.failed.values()))
        raise BadCapture(f"{len(teacher_pass.failed)} shards not written; first: {first}")
    if len(work.committed) < len(work.parts):
        left = len(work.parts) - len(work.committed)
        raise TryAgain(f"{work.job.out}: stopped with {left} shards to do; the same command continues")


def _start_engine(config: GenerateConfig, job: Job) -> "TeacherEngine | StockEngine":
    print(f"starting vLLM with {job.teacher.name}", file=sys.stderr)
    engine = EngineConfig(
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
    )
    if config.capture_backend == "pooler":
        return TeacherEngine(engine, job.capture_settings())
    prepare_environment(config.tensor_parallel, config.verbose)  # before torch loads
    from arwkv_producer.stock_engine import StockEngine

    return StockEngine(engine, config.top_k, job.info.tokenizer.vocab_size)


@contextmanager
def _stop_requested() -> Iterator[Callable[[], bool]]:
    """Inside the block SIGTERM only sets what the yielded function answers."""
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, before)


def _summary(work: Work) -> dict[str, Any]:
    columns: dict[str, int] = {}
    for manifest in work.committed:
        for column, size_bytes in manifest.stats.bytes_by_column.items():
            columns[column] = columns.get(column, 0) + size_bytes
    corpus = work.job.info.corpus
    tokens = sum(manifest.tokens for manifest in work.committed)
    return {
        "dataset": work.job.out,
        "tokens": tokens,
        "samples": sum(manifest.rows for manifest in work.committed),
        "shards": len(work.committed),
        "shards_present_before": corpus.parts - work.missing,
        "tokens_per_s": tokens / work.capture_s if tokens else 0.0,
        "bytes_by_column": columns,
        "size_bytes": sum(manifest.size_bytes for manifest in work.committed),
        "capture_s": work.capture_s,
        "corpus": {
            **asdict(work.job.corpus.report),
            "samples": corpus.samples,
            "tokens": corpus.tokens,
            "shards": corpus.parts,
        },
    }
