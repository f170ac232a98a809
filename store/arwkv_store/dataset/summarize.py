"""Writes the summary of a dataset's manifests, from what is there."""

import hashlib

from arwkv_store.dataset.index import ManifestIndex
from arwkv_store.format.layout import DATASET_FILE
from arwkv_store.format.schema import DatasetInfo
from arwkv_store.format.summary import SUMMARY_FILE, Summary
from arwkv_store.places.cache import FileCache
from arwkv_store.places.source import source_of
from arwkv_store.places.target import target_of

FIRST_SUMMARY = 64
"""Commits of one writer before the first summary; the next come at twice as many each time, and at the end."""


def summarize(uri: str) -> Summary:
    """Write the summary anew: manifests that are as the last one saw them are not read.

    Raises NotFound, CorruptShard, UsageError for a place that cannot be written, TryAgain.
    """
    source = source_of(uri, FileCache.of(None, None))
    raw = source.dataset_json()
    DatasetInfo.from_bytes(raw, f"{source.uri}/{DATASET_FILE}")
    dataset_hash = hashlib.sha256(raw).hexdigest()
    summary = ManifestIndex(source, dataset_hash, exact=True).summary
    target_of(uri).replace_beside(SUMMARY_FILE, summary.to_bytes(dataset_hash))
    return summary


def is_milestone(commits: int) -> bool:
    """Whether a summary is due after so many commits of one writer: 64, 128, 256, …"""
    return commits >= FIRST_SUMMARY and commits & (commits - 1) == 0
