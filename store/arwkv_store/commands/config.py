"""The flags of `store`: one frozen dataclass a command."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class LsConfig:
    """List a dataset's parts, or the datasets in a folder. Example: `store ls ./shards`."""

    uri: Positional[str]
    """A dataset (folder, http(s)://, s3://, hf://), or a folder of datasets."""
    json: bool = False
    """Print one JSON document instead of a table."""


@dataclass(frozen=True)
class InfoConfig:
    """Show what a dataset is: teacher, capture settings, corpus. Example: `store info ./shards`."""

    uri: Positional[str]
    """A dataset: folder, http(s)://, s3://, hf://."""
    json: bool = False
    """Print one JSON document instead of a table."""


@dataclass(frozen=True)
class StatsConfig:
    """Show a dataset's statistics, or one part's. Example: `store stats ./shards --part 3`."""

    uri: Positional[str]
    """A dataset: folder, http(s)://, s3://, hf://."""
    part: int | None = None
    """Only this part."""
    json: bool = False
    """Print one JSON document instead of a table."""


@dataclass(frozen=True)
class VerifyConfig:
    """Compare every byte with its checksum; exit code 3 if any differs. Example: `store verify ./shards --deep`."""

    uri: Positional[str]
    """A dataset: folder, http(s)://, s3://, hf://. Remote files are fetched anew, one part at a time, into TMPDIR."""
    deep: bool = False
    """Also compare whole-file SHA-256 and decode every cell."""
    repair: bool = False
    """Set damaged parts aside (folder datasets only), so that the producer's same command makes them again."""
    json: bool = False
    """Print one JSON document instead of a table."""


@dataclass(frozen=True)
class ExportConfig:
    """Write a dataset as plain nested lists. Example: `store export ./shards --to parquet --out ./plain`."""

    uri: Positional[str]
    """A dataset: folder, http(s)://, s3://, hf://."""
    out: Path
    """The folder to write to: one file a part."""
    to: Literal["parquet"] = "parquet"
    """The format."""
    columns: tuple[str, ...] = ()
    """Heavy columns to write: logits, token_stats, hidden, hidden.attn.007, …; all when left out."""
    json: bool = False
    """Print one JSON document instead of a line."""


@dataclass(frozen=True)
class CopyConfig:
    """Copy a dataset's committed parts, verified; again to continue. Example: `store copy ./shards s3://bucket/shards`."""

    uri: Positional[str]
    """A dataset: folder, http(s)://, s3://, hf://. A service hands out all but the tokenizer's files beside it."""
    to: Positional[str]
    """Where to: a folder, s3://, hf://, or another store that fsspec writes. Parts that are there already stay."""
    json: bool = False
    """Print one JSON document instead of a line."""


@dataclass(frozen=True)
class ReindexConfig:
    """Have a service read every manifest again. Example: `store reindex http://localhost:8000/v1/datasets/train`."""

    uri: Positional[str]
    """The dataset as the service names it: http(s)://host/v1/datasets/NAME. The key, if any, is ARWKV_API_KEY."""
    json: bool = False
    """Print the service's answer as one JSON document."""
