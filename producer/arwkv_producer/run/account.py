"""Counts what a run does, for the progress bar, for Prometheus and for the JSONL log."""

import contextlib
import json
import os
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from arwkv_producer.check.samples import BadCapture
from arwkv_producer.config import GenerateConfig
from arwkv_producer.run.job import Job
from arwkv_store import ShardManifest
from arwkv_store.commands.progress import Progress, ticking
from arwkv_store.errors import TryAgain, UsageError
from arwkv_store.places.commit import storage_faults
from arwkv_store.places.pulse import Pulse


@dataclass
class _Followed:
    """A heartbeat, and what it has told."""

    pulse: Pulse
    left_tokens: int
    shards: int = 0
    tokens: int = 0

    def committed(self, manifest: ShardManifest, tokens_per_s: float) -> None:
        self.shards, self.tokens = self.shards + 1, self.tokens + manifest.tokens
        self.left_tokens = max(self.left_tokens - manifest.tokens, 0)
        left_s = self.left_tokens / tokens_per_s if tokens_per_s else None
        self.pulse.say(done=self.shards, tokens=self.tokens, tokens_per_s=tokens_per_s, left_s=left_s)


class Account:
    """One run's counters. Use it in a `with` block: its end logs how the run ended and frees the port."""

    def __init__(self, config: GenerateConfig) -> None:
        self._rank = config.rank
        self._log = None if config.log_jsonl is None else _open_log(config.log_jsonl)
        self._where = config.log_jsonl or ""
        self._bar: Progress | None = None
        self._end = contextlib.ExitStack()
        self._read = self._part_ends = 0
        self._parts_begun = self._parts = 0
        self._followed: dict[str, _Followed] = {}
        self._registry = CollectorRegistry()
        self._captured = self._counter("captured_tokens", "Tokens the teacher has read")
        self._tokens = self._counter("tokens", "Tokens in committed shards")
        self._samples = self._counter("samples", "Samples in committed shards")
        self._shards = self._counter("shards", "Shards committed")
        self._bytes = self._counter("written_bytes", "Bytes in committed shards")
        self._left_out = self._counter("documents_left_out", "Documents left out of the corpus", "reason")
        self._cut = self._counter("documents_cut", "Documents cut into several samples")
        self._bad = self._counter("bad_samples", "Samples without a usable answer of the teacher")
        self._errors = self._counter("errors", "Errors that ended the run", "kind")
        self._rate = Gauge(
            "arwkv_producer_tokens_per_second", "Tokens captured per second since the start", registry=self._registry
        )
        self._left = Gauge(
            "arwkv_producer_shards_left", "Shards that this process has not committed yet", registry=self._registry
        )
        self._server = None if config.metrics_port is None else self._serve(config.metrics_host, config.metrics_port)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"arwkv_producer_{name}", meaning, labels, registry=self._registry)

    def _serve(self, host: str, port: int) -> Any:
        try:
            return start_http_server(port, host, self._registry)[0]
        except OSError as error:
            raise UsageError(
                f"--metrics-port {port}: cannot listen on {host} ({error.strerror}); choose another port"
            ) from error

    def corpus(self, job: Job) -> None:
        """Count the documents of a job that were left out."""
        report = job.corpus.report
        for reason, count in report.left_out().items():
            self._left_out.labels(reason).inc(count)
        self._cut.inc(report.documents_cut)
        self._say("corpus", dataset=job.out, samples=len(job.corpus), tokens=job.corpus.size, **vars(report))

    def begin(self, tokens: int, shards: int) -> None:
        """Set the amount of work. The speed is measured from here."""
        self._bar = self._end.enter_context(Progress("producer", tokens))
        self._end.enter_context(ticking(self._bar.tick))
        self._parts = shards
        self._left.set(shards)
        self._rate.set_function(self._tokens_per_s)
        self._say("begin", tokens=tokens, shards=shards)

    def follow(self, dataset: str, pulse: Pulse, tokens: int) -> None:
        """Tell the dataset's heartbeat of its shards and errors; it is to have this number of tokens more."""
        self._followed[dataset] = _Followed(pulse, tokens)

    @property
    def capturing(self) -> bool:
        """Whether `begin` was called. Before that, a stop loses no work."""
        return self._bar is not None

    def begin_part(self, tokens: int) -> None:
        """A part with this number of tokens is captured next."""
        self._parts_begun += 1
        self._part_ends = self._read + tokens

    def finishing(self) -> str:
        """A text that says what a stop waits for."""
        if not self._parts_begun:
            return "finishing the shards in hand"
        speed, left = self._tokens_per_s(), max(self._part_ends - self._read, 0)
        about = f", about {duration(left / speed)}" if speed else ""
        return f"finishing shard {self._parts_begun} of {self._parts}{about}"

    def captured(self, tokens: int) -> None:
        """The teacher has read this number of further tokens."""
        self._read += tokens
        self._captured.inc(tokens)
        if self._bar is not None:
            self._bar.advance(tokens)

    def committed(self, dataset: str, manifest: ShardManifest) -> None:
        """A shard was committed."""
        self._tokens.inc(manifest.tokens)
        self._samples.inc(manifest.rows)
        self._shards.inc()
        self._bytes.inc(manifest.size_bytes)
        self._left.dec()
        if self._bar is not None:
            self._bar.advance(0, size_bytes=manifest.size_bytes, note=f"part {manifest.part}")
        if (followed := self._followed.get(dataset)) is not None:
            followed.committed(manifest, self._tokens_per_s())
        self._say(
            "shard",
            dataset=dataset,
            part=manifest.part,
            samples=manifest.rows,
            tokens=manifest.tokens,
            size_bytes=manifest.size_bytes,
            tokens_per_s=round(self._tokens_per_s(), 1),
        )

    def bad(self, sample_id: int, reason: BadCapture) -> None:
        """A sample could not be captured in two attempts."""
        self._bad.inc()
        for followed in self._followed.values():
            if followed.left_tokens:
                followed.pulse.failed(str(reason))
                break
        print(f"producer: {reason}", file=sys.stderr)
        self._say("bad_sample", sample_id=sample_id, message=str(reason))

    def _tokens_per_s(self) -> float:
        return 0.0 if self._bar is None else self._bar.tokens_per_s

    def _say(self, event: str, **fields: Any) -> None:
        if self._log is None:
            return
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, "rank": self._rank}
        with storage_faults(self._where):
            os.write(self._log, (json.dumps(line | fields) + "\n").encode())

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.__exit__(kind, error, trace)
        if error is not None:
            self._errors.labels(type(error).__name__).inc()
        stopped = isinstance(error, TryAgain | KeyboardInterrupt)
        status = "finished" if error is None else "stopped" if stopped else "failed"
        self._say("end", status=status, message=str(error or ""), seconds=round(time.monotonic() - self._began, 3))
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        if self._log is not None:
            os.close(self._log)


def duration(seconds: float) -> str:
    """A duration in a readable unit: seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _open_log(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise UsageError(f"--log-jsonl {path}: {error.strerror}; name a file that can be written") from error
