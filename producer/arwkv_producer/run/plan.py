"""The cost of a capture, computed before it starts."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from itertools import groupby
from typing import Any

from arwkv_producer.config import GenerateConfig, PlanConfig
from arwkv_producer.run.identity import capture_info
from arwkv_producer.run.output_folder import missing_room
from arwkv_producer.run.sizes import PARTS_BEFORE_WRITING, SHARD_BYTES, row_bytes, samples_per_part, stored_bytes
from arwkv_producer.teacher.capture import LOGITS_CHUNK_BYTES
from arwkv_producer.teacher.teacher import Teacher, find_teacher
from arwkv_store.format.hidden_names import is_hidden_column
from arwkv_store.format.schema import CaptureInfo

FULL_HIDDEN_TOKENS = 20_000_000
"""Hidden states of every layer are practical up to about this many tokens; use fewer layers for more."""


def plan(config: PlanConfig) -> dict[str, Any]:
    """Bytes per token by column, total, shards and time, for a corpus of `config.tokens` full-length samples.

    If `config.data` names text, its tokens are counted instead; see `plan_of_text`.
    """
    if config.data:
        return plan_of_text(config)
    teacher = find_teacher(config.teacher)
    samples = -(-config.tokens // config.max_length)
    return costs(config, teacher, config.tokens, samples, config.tokens_per_s)


def plan_of_text(config: GenerateConfig) -> dict[str, Any]:
    """A plan for each dataset that the command would make, by its `--out`. The text is read and everything checked."""
    from arwkv_producer.run.job import fitted, prepare, report_corpus

    documents = {}
    config = fitted(config)
    jobs = prepare(replace(config, dry_run=True))
    for job in jobs:
        report_corpus(job)
        documents[job.out] = costs(config, job.teacher, job.corpus.size, len(job.corpus), config.tokens_per_s)
        documents[job.out]["corpus"] = asdict(job.corpus.report)
    tokens = sum(job.corpus.size for job in jobs)
    if (problem := missing_room(config, jobs[0].teacher, tokens)) is not None:
        print(f"{problem}; the run will not start without --fill-disk", file=sys.stderr)
    return documents


def costs(config: GenerateConfig, teacher: Teacher, tokens: int, samples: int, tokens_per_s: float) -> dict[str, Any]:
    """The plan for a corpus of known size."""
    capture = capture_info(config, teacher)
    columns = stored_bytes(capture, teacher.width, teacher.head_rows)
    per_part = samples_per_part(config, capture, teacher.width)
    shards = -(-samples // per_part)
    columns["rows"] += SHARD_BYTES * shards / tokens
    return {
        "teacher": teacher.name,
        "tokens": tokens,
        "samples": samples,
        "shards": shards,
        "samples_per_shard": per_part,
        "bytes_per_token": sum(columns.values()),
        "bytes_per_token_by_column": columns,
        "total_bytes": sum(columns.values()) * tokens,
        "extra_device_bytes": extra_device_bytes(capture, teacher, config.step_tokens),
        "host_bytes": host_bytes(capture, teacher, per_part, config.writers),
        "seconds": tokens / tokens_per_s if tokens_per_s else None,
        "advice": advice(capture, columns, tokens),
    }


def extra_device_bytes(capture: CaptureInfo, teacher: Teacher, step_tokens: int) -> int:
    """Device memory of the capture in addition to the engine's: one chunk of logits, one step's hidden states."""
    # fp32 logits, and either the head's own output or, where draws need them, exponentials and one temporary; a chunk
    # has at least 64 rows.
    chunks = {"none": 0, "sampled": 3, "hybrid": 3}.get(capture.logits, 2)
    logits = chunks * max(LOGITS_CHUNK_BYTES, 64 * 4 * teacher.head_rows)
    kept = step_tokens * ((capture.top_k or 1) * 8 + (capture.samples or 0) * 4 + 12) if logits else 0
    return logits + kept + step_tokens * len(capture.hidden_columns()) * teacher.width * 2


def host_bytes(capture: CaptureInfo, teacher: Teacher, samples_per_part: int, writers: int) -> int:
    """Maximum memory of captured parts that are not yet written, with full-length samples."""
    parts = PARTS_BEFORE_WRITING + writers
    return parts * samples_per_part * capture.max_length * row_bytes(capture, teacher.width)


def advice(capture: CaptureInfo, columns: dict[str, float], tokens: int) -> str:
    """A cheaper choice if hidden states of all layers are too large; empty otherwise."""
    hidden = sum(size for name, size in columns.items() if is_hidden_column(name))
    if hidden * tokens <= FULL_HIDDEN_TOKENS * 60_000 or len(capture.layers) <= 1:
        return ""
    return (
        f"hidden states of {len(capture.layers)} layers take {hidden * tokens / 1e12:,.1f} TB: capture them for a "
        f"part of the corpus (about {FULL_HIDDEN_TOKENS // 1_000_000} million tokens align the time mixers) and "
        "--hidden-states none for the rest"
    )


def _merged(columns: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Columns and their bytes, equal layers as one: `hidden.attn × 30`."""

    def kind(column: tuple[str, float]) -> tuple[str, float]:
        name, size = column
        return name.rpartition(".")[0] or name, size

    for (name, size), equal in groupby(columns.items(), key=kind):
        names = [column for column, _ in equal]
        yield (names[0], size) if len(names) == 1 else (f"{name} × {len(names)}", size * len(names))


def print_plan(document: dict[str, Any]) -> None:
    """The plan as a table; `document` is one plan."""
    print(f"{document['teacher']}: {document['tokens']:,} tokens in {document['samples']:,} samples")
    for column, size in _merged(document["bytes_per_token_by_column"]):
        print(f"  {column:<22} {size:>10,.1f} bytes/token {size * document['tokens'] / 1e9:>12,.3f} GB")
    together, total = document["bytes_per_token"], document["total_bytes"] / 1e9
    print(f"  {'together':<22} {together:>10,.1f} bytes/token {total:>12,.3f} GB")
    print(f"  {document['shards']:,} shards of {document['samples_per_shard']} samples")
    print(f"  {document['extra_device_bytes'] / 1e9:,.2f} GB of device memory in addition to the engine's own")
    print(f"  {document['host_bytes'] / 1e9:,.2f} GB of host memory for parts that are not yet written")
    if document["seconds"] is None:
        print("  time unknown: set --tokens-per-s to the speed that a run of this teacher reported")
    else:
        print(f"  {document['seconds'] / 3600:,.1f} hours at the given speed")
    if document["advice"]:
        print(document["advice"])
