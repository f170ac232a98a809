"""Datasets as plain Parquet: nested lists of numbers, one file per part, readable without our codecs."""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from arwkv_store.dataset.reader import Dataset, open_dataset
from arwkv_store.format.hidden_names import hidden_column
from arwkv_store.format.sample import Sample
from arwkv_store.places.cache import FileCache
from arwkv_store.places.commit import storage_faults, sync_folder, temporary_file, write_once
from arwkv_store.places.source import source_of

EXPORTED = b"arwkv.dataset"
"""The key of a file's metadata whose value is the dataset.json that it was exported from."""
ROW_GROUP_BYTES = 64 << 20
"""Approximate size of a row group, at least one sample: with hidden states of all layers that can be a gigabyte."""


def export_parquet(uri: str, out: Path, *, columns: Collection[str] | None = None) -> Iterator[Path]:
    """Write `part-NNNNNN.parquet` for every committed part; yields each path when it is complete.

    Columns: sample_id, tokens, loss_mask, source; logits as `ids` and `logprobs` [T][k] and `tail_logprob` [T];
    `entropy` [T], `true_logprob` [T-1], null where a sample has none; hidden states by their column name as
    float32 [T][C].
    """
    dataset = open_dataset(uri, columns=columns)
    token_stats = dataset.reads("token_stats") and dataset.stats().entropy_positions > 0
    yield from write_parts(dataset, out, "part-{:06d}.parquet", lambda samples: _table(samples, token_stats))


def write_parts(
    dataset: Dataset, out: Path, name: str, table: Callable[[Sequence[Sample]], pa.Table]
) -> Iterator[Path]:
    """Write one file per committed part, with the dataset's identity in it, and the tokenizer's files beside."""
    first = 0
    with storage_faults(str(out)):
        out.mkdir(parents=True, exist_ok=True)
        for beside, content in source_of(dataset.uri, FileCache.of(None, None)).beside().items():
            write_once(out / beside, content)
        for manifest in dataset.shards:
            path = out / name.format(manifest.part)
            _write_part(path, dataset, range(first, first + manifest.rows), table)
            first += manifest.rows
            yield path


def _write_part(
    path: Path, dataset: Dataset, rows: Sequence[int], table: Callable[[Sequence[Sample]], pa.Table]
) -> None:
    identity = {EXPORTED: dataset.info.to_bytes()}
    with temporary_file(path.parent) as file:
        writer: pq.ParquetWriter | None = None
        for samples in _groups(dataset, rows):
            group = table(samples).replace_schema_metadata(identity)
            writer = writer or pq.ParquetWriter(file, group.schema, compression="zstd")
            writer.write_table(group)
        if writer is not None:
            writer.close()
        os.fsync(file.fileno())
        os.replace(file.name, path)
    sync_folder(path.parent)


def _groups(dataset: Dataset, rows: Sequence[int]) -> Iterator[list[Sample]]:
    """The samples in groups that become row groups."""
    group: list[Sample] = []
    size_bytes = 0
    for row in rows:
        sample = dataset[row]
        group.append(sample)
        size_bytes += 16 * len(sample.tokens) + sum(4 * states.size for states in sample.hidden.values())
        size_bytes += 0 if sample.logits is None else 8 * len(sample.logits.ids)
        if size_bytes >= ROW_GROUP_BYTES:
            yield group
            group, size_bytes = [], 0
    if group:
        yield group


def _table(samples: Sequence[Sample], token_stats: bool) -> pa.Table:
    columns: dict[str, pa.Array] = {
        "sample_id": pa.array([sample.sample_id for sample in samples], pa.int64()),
        "tokens": lists([sample.tokens for sample in samples]),
        "loss_mask": lists([sample.loss_mask for sample in samples]),
        "source": pa.array([sample.source for sample in samples], pa.string()),
    }
    logits = [sample.logits for sample in samples if sample.logits is not None]
    if logits:
        counts = [one.counts for one in logits]
        columns["ids"] = nested([one.ids for one in logits], counts)
        columns["logprobs"] = nested([one.logprobs for one in logits], counts)
        columns["tail_logprob"] = lists([one.tail_logprob for one in logits])
    if token_stats:
        columns["entropy"] = pa.array([sample.entropy for sample in samples], pa.list_(pa.float32()))
        columns["true_logprob"] = pa.array([sample.true_logprob for sample in samples], pa.list_(pa.float32()))
    for name in samples[0].hidden:
        states = [sample.hidden[name].astype(np.float32) for sample in samples]
        widths = [np.full(len(one), one.shape[1]) for one in states]
        columns[hidden_column(name)] = nested([one.reshape(-1) for one in states], widths)
    return pa.table(columns)


def lists(values: Sequence[Any]) -> pa.Array:
    """One list per sample."""
    return pa.ListArray.from_arrays(_offsets([len(value) for value in values]), pa.array(np.concatenate(values)))


def nested(values: Sequence[NDArray[Any]], counts: Sequence[NDArray[Any]]) -> pa.Array:
    """One list per sample of one list per position."""
    inner = pa.ListArray.from_arrays(_offsets(np.concatenate(counts)), pa.array(np.concatenate(values)))
    return pa.ListArray.from_arrays(_offsets([len(count) for count in counts]), inner)


def _offsets(lengths: Any) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
