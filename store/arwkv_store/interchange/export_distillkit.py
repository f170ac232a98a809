"""Datasets as DistillKit reads them: top-k log-probabilities in float32, each position filled up to the same k."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from arwkv_store.dataset.reader import open_dataset
from arwkv_store.errors import UsageError
from arwkv_store.format.columns import max_count
from arwkv_store.format.sample import Sample, SparseLogits
from arwkv_store.interchange.distillkit_codec import Compression, packed_ids
from arwkv_store.interchange.export_parquet import lists, nested, write_parts
from arwkv_store.interchange.rows import COMPRESSION_FILE
from arwkv_store.places.commit import storage_faults, write_once

FILLING_LOGPROB = -10_000.0
"""Of an entry that only fills a position up: a probability of 0, and no infinity that a loss would multiply with 0."""
IGNORED_LABEL = -100


def export_distillkit(uri: str, out: Path) -> Iterator[Path]:
    """Write `data_N.parquet` for every committed part, and `compression_config.yaml`; yields each path.

    Columns: input_ids, labels (-100 where the loss mask is False), compressed_logprobs, bytepacked_indices; one entry
    for each token. Tail mass, entropy and hidden states have no place there. Raises UsageError without logits.
    """
    dataset = open_dataset(uri, columns=[])
    if dataset.info.capture.logits == "none":
        raise UsageError(f"{uri}: it holds no logits; DistillKit's format has no other column")
    dataset = open_dataset(uri, columns=["logits"])
    k = max_count(dataset.info)
    settings = Compression(dataset.info.tokenizer.vocab_size, k, k, delta_encoding=False)
    # JSON is YAML too.
    document = json.dumps({**asdict(settings), "polynomial_terms": None}, indent=2) + "\n"
    with storage_faults(str(out)):
        out.mkdir(parents=True, exist_ok=True)
        write_once(out / COMPRESSION_FILE, document.encode())
    yield from write_parts(dataset, out, "data_{}.parquet", partial(_table, settings))
    yield out / COMPRESSION_FILE


def _table(settings: Compression, samples: Sequence[Sample]) -> pa.Table:
    logits = [sample.logits for sample in samples if sample.logits is not None]
    filled = [_filled(one, settings) for one in logits]
    ids = [packed_ids(ids_Tk, settings.id_bits) for ids_Tk, _ in filled]
    values = [np.ascontiguousarray(values_Tk).view(np.uint8) for _, values_Tk in filled]
    labels = [np.where(sample.loss_mask, sample.tokens, IGNORED_LABEL).astype(np.int64) for sample in samples]
    return pa.table(
        {
            "input_ids": lists([sample.tokens.astype(np.uint64) for sample in samples]),
            "labels": lists(labels),
            "compressed_logprobs": nested([one.reshape(-1) for one in values], [_widths(one) for one in values]),
            "bytepacked_indices": nested([one.reshape(-1) for one in ids], [_widths(one) for one in ids]),
        }
    )


def _widths(rows: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.full(len(rows), rows.shape[1], np.int64)


def _filled(logits: SparseLogits, settings: Compression) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids and log-probabilities [T, k]; places that are left take ids that the position does not keep."""
    T, k = len(logits.counts), settings.k
    kept = np.arange(k) < logits.counts[:, None]
    ids, values = np.zeros((T, k), np.int64), np.full((T, k), FILLING_LOGPROB, np.float32)
    ids[kept], values[kept] = logits.ids, logits.logprobs
    for t in np.flatnonzero(logits.counts < k):
        unused = np.setdiff1d(np.arange(k), ids[t, kept[t]], assume_unique=True)
        ids[t, ~kept[t]] = unused[: k - logits.counts[t]]
    return ids, values
