"""The rows of `store ls` and `store stats`, ready for JSON."""

from pathlib import Path
from typing import Any

from arwkv_store.dataset.reader import open_dataset
from arwkv_store.errors import NotFound, UsageError
from arwkv_store.format.layout import DATASET_FILE
from arwkv_store.format.statistics import ShardStats


def list_datasets(uri: str) -> list[dict[str, Any]] | None:
    """One row per dataset in a folder of datasets; None if `uri` is (or may be) a dataset itself."""
    folder = Path(uri)
    if "://" in uri or (folder / DATASET_FILE).exists():
        return None
    if not folder.is_dir():
        raise NotFound(f"{uri}: no such folder; name a dataset's folder or URI")
    found = sorted(path.parent for path in folder.glob(f"*/{DATASET_FILE}"))
    if not found:
        raise NotFound(f"{uri}: no dataset there: neither {DATASET_FILE} nor folders that hold one")
    return [_dataset_row(path) for path in found]


def list_parts(uri: str) -> list[dict[str, Any]]:
    """One row per committed part."""
    return [
        {
            "part": manifest.part,
            "rows": manifest.rows,
            "tokens": manifest.tokens,
            "first_sample_id": manifest.first_sample_id,
            "last_sample_id": manifest.last_sample_id,
            "size_bytes": manifest.size_bytes,
            "bytes_per_token": manifest.size_bytes / max(manifest.tokens, 1),
            "files": sorted(file.name for file in manifest.files.values()),
        }
        for manifest in open_dataset(uri).shards
    ]


def stats_of(uri: str, part: int | None) -> ShardStats:
    """The statistics of a dataset, or of one part of it. Raises UsageError for a part that is not committed."""
    dataset = open_dataset(uri)
    if part is None:
        return dataset.stats()
    for manifest in dataset.shards:
        if manifest.part == part:
            return manifest.stats
    raise UsageError(f"{uri}: part {part} is not committed; `store ls` lists those that are")


def _dataset_row(folder: Path) -> dict[str, Any]:
    dataset = open_dataset(folder)
    return {
        "name": folder.name,
        "teacher": dataset.info.teacher.model,
        "logits": dataset.info.capture.logits,
        "hidden_states": dataset.info.capture.hidden_states,
        "parts": len(dataset.shards),
        "planned_parts": dataset.info.corpus.parts or len(dataset.shards),
        "samples": len(dataset),
        "tokens": dataset.tokens,
        "size_bytes": sum(manifest.size_bytes for manifest in dataset.shards),
    }
