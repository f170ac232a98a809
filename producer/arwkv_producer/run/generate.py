"""The producer's run: capture part after part, write each while the next is captured."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from arwkv_producer.config import GenerateConfig
from arwkv_producer.run.account import Account
from arwkv_producer.run.backend import require_startable, start_engine
from arwkv_producer.run.job import Job, fitted, prepare, report_corpus
from arwkv_producer.run.output_folder import present_info
from arwkv_producer.run.parts import Work, capture_parts, share, summary_of
from arwkv_producer.run.stopping import stop_requested
from arwkv_producer.run.teacher_pass import Engine
from arwkv_producer.teacher.vllm_setup import prepare_environment
from arwkv_store.places.pulse import Pulse


def generate(config: GenerateConfig) -> dict[str, Any]:
    """Make the missing parts of this rank. Returns the summary of the run.

    Raises UsageError and similar errors before the engine starts, BadCapture if the teacher's answers are unusable, and
    TryAgain after a first SIGTERM or Ctrl-C, once the current part is committed; KeyboardInterrupt after a second
    signal, or before the engine has started.
    """
    began = time.monotonic()
    config = fitted(config)
    prepare_environment(config.tensor_parallel, config.verbose)
    with Account(config) as account, stop_requested(account) as stopping:
        jobs = prepare(config)
        for job in jobs:
            report_corpus(job)
            account.corpus(job)
        if config.ray is None and not any(present_info(job.out) for job in jobs):
            require_startable(config, jobs[0])
        works = [share(config, job) for job in jobs]
        if any(work.parts for work in works):
            with _announced(config, works, account):
                _make(config, works, account, stopping)
    summary, *held_out = [summary_of(work) for work in works]
    return {**summary, "seconds": time.monotonic() - began, **({"held_out": held_out[0]} if held_out else {})}


def _make(config: GenerateConfig, works: list[Work], account: Account, stopping: Callable[[], bool]) -> None:
    """Make the works' parts here, or on the cluster that was named."""
    tokens, shards = sum(work.tokens for work in works), sum(len(work.parts) for work in works)
    if config.ray is not None:
        from arwkv_producer.run.cluster import capture_on_cluster

        account.begin(tokens, shards)
        capture_on_cluster(config, works, account, stopping)
        return
    with _running(config, works[0].job) as engine:
        account.begin(tokens, shards)
        for work in works:
            capture_parts(work, engine, account, stopping)


@contextmanager
def _announced(config: GenerateConfig, works: list[Work], account: Account) -> Iterator[None]:
    """Heartbeats beside the datasets that are made, and summaries of their manifests at the end, however it ends."""
    try:
        with ExitStack() as announced:
            for work in filter(lambda work: work.parts, works):
                who = {"process": config.rank, "processes": config.world_size}
                pulse = Pulse(work.job.out, kind="capture", unit="shards", total=len(work.parts), **who)
                account.follow(work.job.out, announced.enter_context(pulse), work.tokens)
            yield
    finally:
        for work in works:
            if work.committed:
                work.writer.summarize()


@contextmanager
def _running(config: GenerateConfig, job: Job) -> Iterator[Engine]:
    """The engine, closed afterwards; after KeyboardInterrupt it ends at once with this process."""
    engine = start_engine(config, job)
    try:
        yield engine
    finally:
        if not isinstance(sys.exception(), KeyboardInterrupt):
            engine.close()
