"""One dataset's share of a run: its missing parts; each is written while the next is captured."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from arwkv_producer.check.samples import BadCapture
from arwkv_producer.config import GenerateConfig
from arwkv_producer.run.account import Account
from arwkv_producer.run.job import Job
from arwkv_producer.run.shard_queue import ShardQueue
from arwkv_producer.run.teacher_pass import Engine, TeacherPass
from arwkv_store import ShardManifest, Writer, create_dataset
from arwkv_store.errors import ConfigurationDiffers, TryAgain
from arwkv_store.format.layout import CORPUS_FILE


@dataclass
class Work:
    """One dataset's share of a run."""

    job: Job
    writer: Writer
    missing: int
    """Parts that were not committed when the run began."""
    parts: list[int]
    """The missing parts that this rank makes."""
    committed: list[ShardManifest] = field(default_factory=list)
    capture_s: float = 0.0

    @property
    def tokens(self) -> int:
        """Of the parts to make."""
        return sum(map(self.job.part_tokens, self.parts))


def share(config: GenerateConfig, job: Job) -> Work:
    """Open the job's dataset and find this rank's share of its missing parts."""
    writer = create_dataset(job.out, job.info)
    if writer.info.created_by != job.info.created_by:
        raise ConfigurationDiffers(
            f"{job.out}: created by {writer.info.created_by}, but this command uses {job.info.created_by}; "
            "choose another folder, or the dataset's own --capture-backend"
        )
    for name, content in job.tokenizer_files.items():
        writer.put_beside(name, content)
    corpus = job.corpus
    writer.put_beside(CORPUS_FILE, corpus.report.to_bytes(len(corpus), corpus.size))
    missing = writer.missing_parts()
    return Work(job, writer, len(missing), [part for part in missing if part % config.world_size == config.rank])


def capture_parts(work: Work, engine: Engine, account: Account, stopping: Callable[[], bool]) -> None:
    """Capture and commit the work's parts, and account for each of them."""
    commit_parts(work, TeacherPass(work.job, engine, account), account, stopping)


def commit_parts(work: Work, teacher_pass: TeacherPass, account: Account, stopping: Callable[[], bool]) -> None:
    """The same with a pass that has already made other parts of the job."""
    began = time.monotonic()

    def committed(manifest: ShardManifest) -> None:
        work.committed.append(manifest)
        account.committed(work.job.out, manifest)

    with ShardQueue(work.writer, committed, work.job.writers) as shards:
        for part in work.parts:
            if stopping():
                break
            account.begin_part(work.job.part_tokens(part))
            samples = teacher_pass.capture_part(part)
            if samples is not None:
                shards.put(part, samples)
    work.capture_s = time.monotonic() - began
    failed = [teacher_pass.failed[part] for part in work.parts if part in teacher_pass.failed]
    if failed:
        raise BadCapture(f"{len(failed)} shards not written; first: {failed[0]}")
    require_complete(work)


def require_complete(work: Work) -> None:
    """Raise TryAgain if parts are missing."""
    if len(work.committed) < len(work.parts):
        left = len(work.parts) - len(work.committed)
        raise TryAgain(f"{work.job.out}: stopped with {left} shards left; run the same command again to continue")


def summary_of(work: Work) -> dict[str, Any]:
    """The summary of one dataset."""
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
