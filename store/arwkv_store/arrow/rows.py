"""Samples as Arrow record batches: light columns that every Arrow tool reads, heavy columns as one cell per sample."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from arwkv_store.arrow.tally import Tally
from arwkv_store.format.columns import HeavyColumn
from arwkv_store.format.sample import Sample
from arwkv_store.format.statistics import sample_stats

TARGET_BATCH_BYTES = 4 << 20
"""One hash covers a heavy column of a batch, or all its light columns; a random read verifies at least that much."""

_IDENTITY = [
    pa.field("sample_id", pa.int64(), nullable=False),
    pa.field("n_tokens", pa.int32(), nullable=False),
]
_LIGHT = [
    *_IDENTITY,
    pa.field("tokens", pa.list_(pa.int32()), nullable=False),
    pa.field("loss_mask", pa.list_(pa.bool_()), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("mean_entropy", pa.float32(), metadata={"unit": "nats"}),
    pa.field("mean_tail_mass", pa.float32()),
    pa.field("teacher_nll", pa.float32(), metadata={"unit": "nats per true token that counts"}),
]
LIGHT_COLUMNS = {"rows": _LIGHT, "hidden": _IDENTITY}
"""The columns before the heavy ones, by kind of file."""


def arrow_schema(
    kind: str, columns: Sequence[HeavyColumn], dataset_hash: str, part: int, format_version: int
) -> pa.Schema:
    """The schema of a part's "rows" or "hidden" file."""
    heavy = [pa.field(column.name, pa.binary(), metadata=column.metadata()) for column in columns]
    metadata = {
        "arwkv.format_version": str(format_version),
        "arwkv.dataset_hash": dataset_hash,
        "arwkv.part": str(part),
    }
    return pa.schema([*LIGHT_COLUMNS[kind], *heavy], metadata=metadata)


def record_batches(
    schema: pa.Schema, samples: Sequence[Sample], columns: Sequence[HeavyColumn], tally: Tally
) -> Iterator[pa.RecordBatch]:
    """Encode samples in order into batches of about TARGET_BATCH_BYTES; counts the cells in `tally`."""
    rows: list[tuple[Sample, list[bytes | None]]] = []
    size_bytes = 0
    for sample in samples:
        cells = [column.encode(sample) for column in columns]
        for column, cell in zip(columns, cells, strict=True):
            tally.add(column, sample, cell)
        rows.append((sample, cells))
        size_bytes += sum(len(cell or b"") for cell in cells) + 5 * len(sample.tokens)
        if size_bytes >= TARGET_BATCH_BYTES:
            yield _record_batch(schema, rows)
            rows, size_bytes = [], 0
    if rows:
        yield _record_batch(schema, rows)


def _record_batch(schema: pa.Schema, rows: Sequence[tuple[Sample, list[bytes | None]]]) -> pa.RecordBatch:
    samples = [sample for sample, _ in rows]
    cells = [pa.array(column, pa.binary()) for column in zip(*(cells for _, cells in rows), strict=True)]
    light = _light_arrays(samples)
    names = schema.names[: len(schema.names) - len(cells)]
    return pa.RecordBatch.from_arrays([*(light[name] for name in names), *cells], schema=schema)


def _light_arrays(samples: Sequence[Sample]) -> dict[str, pa.Array]:
    lengths = [len(sample.tokens) for sample in samples]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    tokens = np.concatenate([sample.tokens for sample in samples]).astype(np.int32)
    mask = np.concatenate([sample.loss_mask for sample in samples]).astype(np.bool_)
    stats = [sample_stats(sample) for sample in samples]
    return {
        "sample_id": pa.array([sample.sample_id for sample in samples], pa.int64()),
        "n_tokens": pa.array(lengths, pa.int32()),
        "tokens": pa.ListArray.from_arrays(offsets, pa.array(tokens)),
        "loss_mask": pa.ListArray.from_arrays(offsets, pa.array(mask)),
        "source": pa.array([sample.source for sample in samples], pa.string()),
        "mean_entropy": pa.array([stat.entropy_mean for stat in stats], pa.float32()),
        "mean_tail_mass": pa.array([stat.tail_mass_mean for stat in stats], pa.float32()),
        "teacher_nll": pa.array([stat.teacher_nll_mean for stat in stats], pa.float32()),
    }
