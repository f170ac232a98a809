"""The flags of `store`: one frozen dataclass per command."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from arwkv_store.commands.command_line import unset

Uri = Annotated[Positional[str], arg(metavar="URI")]


@dataclass(frozen=True)
class LsConfig:
    """List a dataset's parts, or the datasets in a folder. Example: `store ls ./shards`."""

    uri: Uri
    """A dataset (folder, http(s)://, s3://, hf://), or a folder of datasets."""
    json: bool = False
    """Print one JSON document instead of a table."""


@dataclass(frozen=True)
class InfoConfig:
    """Show what a dataset is: teacher, capture settings, corpus. Example: `store info ./shards`."""

    uri: Uri
    """A dataset: folder, http(s)://, s3://, hf://."""
    json: bool = False
    """Print one JSON document instead of a table."""


@dataclass(frozen=True)
class StatsConfig:
    """Show a dataset's statistics, or one part's. Example: `store stats ./shards --part 3`."""

    uri: Uri
    """A dataset: folder, http(s)://, s3://, hf://."""
    part: Annotated[int | None, unset("INT", "default: all parts")] = None
    """Only this part."""
    json: bool = False
    """Print one JSON document instead of a table."""


@dataclass(frozen=True)
class VerifyConfig:
    """Compare every byte with its checksum; exit code 3 if any differs. Example: `store verify ./shards --deep`."""

    uri: Uri
    """A dataset: folder, http(s)://, s3://, hf://. Remote files are downloaded again, one part at a time, to TMPDIR."""
    deep: bool = False
    """Also compare whole-file SHA-256 and decode every cell."""
    repair: bool = False
    """Move damaged parts aside (only in a folder). The producer's same command then makes them again."""
    json: bool = False
    """Print one JSON document instead of a table."""


@dataclass(frozen=True)
class ExportConfig:
    """Write a dataset in another format. Example: `store export ./shards --to parquet --out ./plain`."""

    uri: Uri
    """A dataset: folder, http(s)://, s3://, hf://."""
    out: Path
    """The folder to write to. Each part becomes one file."""
    to: Literal["parquet", "distillkit"] = "parquet"
    """`parquet`: nested lists, everything. `distillkit`: DistillKit's columns, logits without tail mass."""
    columns: Annotated[tuple[str, ...], unset("NAME [NAME ...]", "default: all")] = ()
    """Heavy columns to write as parquet: logits, token_stats, hidden, hidden.attn.007, …"""
    json: bool = False
    """Print one JSON document instead of a line."""


@dataclass(frozen=True)
class ImportConfig:
    """Make a dataset from a capture of another tool. The same command continues.

    Example: `store import --from distillkit ./capture --teacher Qwen2.5-7B --out ./shards`.
    """

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """A Parquet file, a folder of them, or hf://datasets/OWNER/NAME, s3://…"""
    out: str
    """The dataset to write: a folder, s3://, hf://, or another store that fsspec writes."""
    from_: Annotated[Literal["distillkit", "parquet"], arg(name="from")] = "parquet"
    """`parquet`: nested lists, as `store export` writes them or under the names in docs/format.md. `distillkit`:
    DistillKit's compressed log-probabilities."""
    teacher: Annotated[str | None, unset("MODEL", "default: as in files of store export")] = None
    """The teacher's folder or Hub name. Only config.json and the tokenizer are read."""
    column: Annotated[tuple[str, ...], unset("NAME=COLUMN [NAME=COLUMN ...]", "default: the usual names")] = ()
    """What a column is called in the source: tokens=…, ids=…, logprobs=…, loss_mask=…"""
    compression: Annotated[Path | None, unset("FILE", "default: compression_config.yaml in SOURCE")] = None
    """DistillKit's settings of the capture, in YAML or JSON."""
    values: Literal["logprobs", "logits"] = "logprobs"
    """What the values are. Logits are normalized over the kept entries, and leave no tail mass."""
    position_rule: Literal["next-token", "same-token"] = "next-token"
    """Whose distribution entry t is: that of token t+1, or, as in vLLM's prompt_logprobs, that of token t."""
    logits_codec: Literal["exact", "compact"] = "exact"
    """How the log-probabilities are stored: without rounding, or rounded."""
    samples_per_shard: Annotated[int, unset("INT", "default: about 256 MB")] = 0
    """Samples in a part."""
    json: bool = False
    """Print one JSON document instead of lines."""


@dataclass(frozen=True)
class CopyConfig:
    """Copy and verify a dataset's committed parts. The same command continues. Example: `store copy ./a s3://b/a`."""

    uri: Uri
    """A dataset: folder, http(s)://, s3://, hf://. A service does not serve the tokenizer's files."""
    to: Uri
    """Target: a folder, s3://, hf://, or another store that fsspec writes. Existing parts stay."""
    json: bool = False
    """Print one JSON document instead of a line."""


@dataclass(frozen=True)
class RmConfig:
    """Remove a dataset. Without --yes, only show what would be removed. Example: `store rm ./shards --yes`."""

    uri: Uri
    """A dataset: folder, s3:// or another store."""
    yes: bool = False
    """Remove it. The same command completes a removal that was interrupted."""
    json: bool = False
    """Print one JSON document instead of lines."""


@dataclass(frozen=True)
class GcConfig:
    """Remove files that no manifest names. Without --yes, only show them. Example: `store gc ./shards --yes`."""

    uri: Uri
    """A dataset: folder, s3:// or another store."""
    older_hours: float = 24.0
    """Only files that were last written this many hours ago. In a store, a writer may still commit newer ones."""
    yes: bool = False
    """Remove them."""
    json: bool = False
    """Print one JSON document instead of lines."""


@dataclass(frozen=True)
class NoteConfig:
    """Show the notes and tags of a dataset or run, or change them. Example: `store note ./shards --tag baseline`."""

    uri: Uri
    """A dataset (folder, s3:// or another store), or a run's folder."""
    text: Annotated[str | None, unset("TEXT", "default: it stays")] = None
    """The whole text, at most 8,000 characters. "" removes it."""
    tag: Annotated[tuple[str, ...], unset("TAG [TAG ...]", "default: none")] = ()
    """Tags to add: at most 40 of a-z, 0-9, ".", "_" and "-"; 32 tags in all."""
    untag: Annotated[tuple[str, ...], unset("TAG [TAG ...]", "default: none")] = ()
    """Tags to remove."""
    json: bool = False
    """Print one JSON document instead of lines."""


@dataclass(frozen=True)
class ReindexConfig:
    """Rebuild the summary of a dataset's manifests, or a service's index of them. Example: `store reindex ./shards`."""

    uri: Uri
    """A dataset: folder, s3:// or another store: manifests.summary is written anew. Or as a service names it,
    http(s)://host/v1/datasets/NAME: the service reads every manifest again. The key, if any, is ARWKV_API_KEY."""
    json: bool = False
    """Print one JSON document instead of a line."""
