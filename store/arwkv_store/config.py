"""The flags of `store`: one frozen dataclass a command."""

from dataclasses import dataclass

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
    """A dataset: folder, http(s)://, s3://, hf://."""
    deep: bool = False
    """Also compare whole-file SHA-256 and decode every cell."""
    repair: bool = False
    """Set damaged parts aside (folder datasets only), so that the producer's same command makes them again."""
    json: bool = False
    """Print one JSON document instead of a table."""
