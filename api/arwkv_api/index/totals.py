"""A dataset's statistics, grown shard by shard: the sum is exact, so no shard has to be read twice."""

from collections.abc import Iterable, Sequence
from itertools import islice

from arwkv_api.index.orm import DatasetRow
from arwkv_api.roots.manifests import parse_manifest
from arwkv_store.format.statistics import DatasetStats, ShardStats

BATCH_MANIFESTS = 200


def grow(row: DatasetRow, more: Sequence[ShardStats]) -> None:
    """Add shards' statistics to the dataset's; its counts have to be right by then."""
    _write(row, DatasetStats.merged([statistics(row), *more]))


def recompute(row: DatasetRow, manifests: Iterable[bytes]) -> None:
    """The statistics of these manifests' shards alone; the dataset's counts have to be right by then."""
    merged = DatasetStats()
    rest = iter(manifests)
    while batch := list(islice(rest, BATCH_MANIFESTS)):
        merged = DatasetStats.merged([merged, *(parse_manifest(raw).stats for raw in batch)])
    _write(row, merged)


def statistics(row: DatasetRow) -> DatasetStats:
    """The dataset's statistics as indexed; empty ones where nothing is committed."""
    return DatasetStats.model_validate_json(row.stats) if row.stats else DatasetStats(parts=row.parts)


def _write(row: DatasetRow, merged: DatasetStats) -> None:
    totals = {"shards": row.shards, "parts": row.parts or row.shards, "size_bytes": row.size_bytes}
    row.stats = merged.model_copy(update=totals).model_dump_json()
