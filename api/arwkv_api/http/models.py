"""The responses of the service: the JSON of lists, datasets, shards, previews and runs."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from sqlalchemy import Row

from arwkv_api.index.orm import NOT_KNOWN, DatasetRow, ShardRow
from arwkv_api.index.timeline import TimelinePoint
from arwkv_api.views.extensions import Extension
from arwkv_store.format.schema import DatasetInfo

DatasetState = Literal["ready", "indexing", "missing", "unreadable", "withdrawn"]
WorkState = Literal["running", "finished", "stopped", "failed"]
ShardStateName = Literal["committed", "missing", "corrupt"]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class DatasetSummary(_Answer):
    """One dataset at a glance."""

    name: str = Field(examples=["train"])
    state: DatasetState
    problem: str | None = Field(description="why the state is not `ready`")
    teacher: str = Field(examples=["Qwen/Qwen2.5-7B-Instruct"])
    parts: int = Field(description="shards that a complete dataset has")
    shards: int = Field(description="shards committed so far")
    faulty_shards: int = Field(description="shards that are missing or differ from their manifest")
    verified_shards: int = Field(description="committed shards whose files were verified")
    sampled_regions: int = Field(description="random regions of shards in an object store that were verified")
    sampled_bytes: int = Field(description="bytes of those regions")
    samples: int
    tokens: int
    size_bytes: int
    created_at: datetime
    updated_at: datetime
    revision: int = Field(description="grows with every change of the dataset's shards or notes")
    tags: list[str] = Field(description="of its notes", examples=[["baseline"]])


class Dataset(DatasetSummary):
    """One dataset with its identity, as in dataset.json; null if that cannot be read."""

    info: DatasetInfo | None


class DatasetPage(_Answer):
    items: list[DatasetSummary]
    next_cursor: str | None = Field(description="give as `cursor` for the next page; null at the end")


class Shard(_Answer):
    """One shard. Its time is that of the manifest's commit."""

    part: int
    state: ShardStateName
    problem: str | None
    samples: int
    tokens: int
    size_bytes: int
    first_sample_id: int
    last_sample_id: int
    entropy_mean: float | None = Field(description="nats, mean over tokens")
    tail_mass_mean: float | None = Field(description="teacher's mass outside the stored entries, mean over tokens")
    committed_at: datetime
    verified_at: datetime | None = Field(description="when the service last verified its files; null: not yet")
    manifest: str | None = Field(None, description="raw manifest, with `include=manifest` only")


class ShardPage(_Answer):
    items: list[Shard]
    next_cursor: str | None
    committed: int = Field(description="committed shards of the whole dataset, whatever the filters")


class Timeline(_Answer):
    points: list[TimelinePoint]


class Extensions(_Answer):
    items: list[Extension]


class Corpus(_Answer):
    """The producer's report of the dataset's text."""

    report: dict[str, Any] | None = Field(
        description="documents, tokens, turns and files, as the producer wrote them to corpus.json; null: none",
        examples=[{"documents": 1000, "tokens": 512000, "tokens_counted": 498000, "files_read": ["corpus.jsonl"]}],
    )


class Registration(BaseModel):
    """A dataset to index now, by its folder's name under one of the roots."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=255, examples=["train"])


class Lineage(_Answer):
    """Where a dataset comes from, and what was made of it."""

    corpus: str = Field(description="the text's description, or its fingerprint")
    teacher: str
    copies: list[str] = Field(description="other served datasets with the same dataset.json")
    runs: list[str] = Field(description="runs that trained on it, as their run.json says")


class RemovalPlan(_Answer):
    """What removing a dataset's files takes."""

    parts: int
    files: int
    size_bytes: int
    confirm: str = Field(description="give as `confirm` to DELETE to remove exactly this", examples=["21b4485f73d0"])


class Health(_Answer):
    status: Literal["ok"] = "ok"


class Readiness(_Answer):
    """Ready once the index is reachable and every root was scanned."""

    ready: bool
    database: str
    datasets: int
    scan_lag_s: float | None = Field(
        description="seconds since the longest-waiting root was looked at; null before that"
    )


def moment(seconds: float) -> datetime:
    """Seconds since the epoch as a time in UTC."""
    return datetime.fromtimestamp(seconds, UTC)


def dataset_summary(row: Row[Any]) -> DatasetSummary:
    """The list's view of a row."""
    return DatasetSummary(**_summary(row))


def dataset_detail(row: DatasetRow, info: DatasetInfo | None) -> Dataset:
    """The full view of a row; `info` is its parsed identity."""
    return Dataset(**_summary(row), info=info)


def shard_summary(row: ShardRow) -> Shard:
    """The list's view of a shard."""
    return Shard(**_shard({column.key: getattr(row, column.key) for column in ShardRow.__table__.c}))


def shard_page(
    rows: Sequence[Row[Any]], manifests: Mapping[int, bytes], following: str | None, committed: int
) -> bytes:
    """A ShardPage in JSON, with the raw manifests by row id. A Shard for each row would take 2.8 times as long."""
    names = rows[0]._fields if rows else ()
    shards = [dict(zip(names, row, strict=True)) for row in rows]
    items = [_shard(shard, manifests.get(shard["id"])) for shard in shards]
    return to_json({"items": items, "next_cursor": following, "committed": committed}, inf_nan_mode="null")


def _shard(row: Mapping[str, Any], manifest: bytes | None = None) -> dict[str, Any]:
    """The fields of a Shard, in their order."""
    return {
        "part": row["part"],
        "state": row["state"],
        "problem": row["problem"],
        "samples": row["samples"],
        "tokens": row["tokens"],
        "size_bytes": row["size_bytes"],
        "first_sample_id": row["first_sample_id"],
        "last_sample_id": row["last_sample_id"],
        "entropy_mean": _known(row["entropy_mean"]),
        "tail_mass_mean": _known(row["tail_mass_mean"]),
        "committed_at": moment(row["committed_at_s"]),
        "verified_at": moment(row["verified_at_s"]) if row["verified_at_s"] else None,
        "manifest": None if manifest is None else manifest.decode("utf-8", "replace"),
    }


def _known(figure: float) -> float | None:
    return None if figure == NOT_KNOWN else figure


def _summary(row: DatasetRow | Row[Any]) -> dict[str, Any]:  # values of the models' fields, checked when they are made
    return {
        "name": row.name,
        "state": row.state,
        "problem": row.problem,
        "teacher": row.teacher,
        "parts": row.parts or row.shards,  # 0: the dataset grows
        "shards": row.shards,
        "faulty_shards": row.faulty_shards,
        "verified_shards": row.verified_shards,
        "sampled_regions": row.sampled_regions,
        "sampled_bytes": row.sampled_bytes,
        "samples": row.samples,
        "tokens": row.tokens,
        "size_bytes": row.size_bytes,
        "created_at": moment(row.created_at_s),
        "updated_at": moment(row.updated_at_s),
        "revision": row.revision,
        "tags": row.tags.split(),
    }
