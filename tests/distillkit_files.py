"""Captures as DistillKit writes them, made from its documentation bit by bit, for tests of `store import`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

DTYPES: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
SPECIAL = {"sqrt": math.sqrt, "exp": math.exp}


def bits_of(numbers: Sequence[int], width: int) -> list[int]:
    """The numbers' bits, highest first, as bytes; the last byte is filled up with zeros."""
    text = "".join(f"{number:0{width}b}" for number in numbers)
    text += "0" * (-len(text) % 8)
    return [int(text[at : at + 8], 2) for at in range(0, len(text), 8)]


def compressed(values: NDArray[np.float32], settings: Mapping[str, Any]) -> list[int]:
    """One position's log-probabilities, which descend."""
    work = np.diff(values, prepend=0) if settings.get("delta_encoding", True) else values
    exact_k = settings["exact_k"]
    raw = list(work[:exact_k].astype(DTYPES[settings.get("exact_dtype", "float32")]).tobytes())
    rest = work[exact_k:].astype(np.float64)
    terms = settings.get("polynomial_terms") or []
    if terms:
        n = len(rest)
        points = [i / (n - 1) if settings.get("normalize_t") else float(i) for i in range(n)]
        matrix = np.array([[SPECIAL[term](t) if term in SPECIAL else t**term for term in terms] for t in points])
        dtype = DTYPES[settings.get("term_dtype", "float32")]
        coefficients = np.linalg.lstsq(matrix, rest, rcond=None)[0].astype(dtype)
        raw += list(coefficients.tobytes())
        rest = rest - matrix @ coefficients.astype(np.float64)
    for one in settings.get("residual_bins") or []:
        some, rest = rest[: one["num_elements"]], rest[one["num_elements"] :]
        bits = one["element_bits"]
        lowest, highest = (0, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        scale = np.array([abs(some).max() / max(highest + (bits > 1), 1) or 1.0]).astype(DTYPES[one["scale_dtype"]])
        steps = np.clip(np.rint(some / scale.astype(np.float64)), lowest, highest) - lowest
        raw += [*scale.tobytes(), *bits_of([int(step) for step in steps], bits)]
    return raw


def write_capture(
    folder: Path,
    rows: Sequence[tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float32]]],
    settings: Mapping[str, Any],
    *,
    rows_per_file: int = 3,
) -> None:
    """A folder as its capture tool leaves it: of (tokens [T], ids [P, k], log-probabilities [P, k])."""
    folder.mkdir()
    (folder / "compression_config.yaml").write_text(yaml.safe_dump(dict(settings)))
    id_bits = math.ceil(math.log2(settings["d"]))
    schema = pa.schema(
        {
            "input_ids": pa.list_(pa.uint64()),
            "compressed_logprobs": pa.list_(pa.list_(pa.uint8())),
            "bytepacked_indices": pa.list_(pa.list_(pa.uint8())),
        }
    )
    for number, at in enumerate(range(0, len(rows), rows_per_file)):
        table = [
            {
                "input_ids": tokens.tolist(),
                "compressed_logprobs": [compressed(position, settings) for position in values],
                "bytepacked_indices": [bits_of(position.tolist(), id_bits) for position in ids],
            }
            for tokens, ids, values in rows[at : at + rows_per_file]
        ]
        pq.write_table(pa.Table.from_pylist(table, schema), folder / f"data_{number}.parquet")


def write_legacy_capture(
    folder: Path,
    rows: Sequence[tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float32]]],
    settings: Mapping[str, Any],
) -> None:
    """The older columns: powers of 1/t, ids in words of 64 bits."""
    folder.mkdir()
    (folder / "compression_config.yaml").write_text(yaml.safe_dump({"legacy_logit_compression": dict(settings)}))
    bits, exact_k = math.ceil(math.log2(settings["vocab_size"])), settings["exact_k"]
    together = 64 // bits

    def words(ids: Sequence[int]) -> list[int]:
        groups = [ids[at : at + together] for at in range(0, len(ids), together)]
        return [sum(one << (bits * place) for place, one in enumerate(group)) for group in groups]

    def coefficients(rest: NDArray[np.float32]) -> list[float]:
        t = np.arange(1, len(rest) + 1, dtype=np.float64)
        matrix = np.stack([t**-power for power in range(settings["polynomial_degree"] + 1)], axis=1)
        return [float(one) for one in np.linalg.lstsq(matrix, rest.astype(np.float64), rcond=None)[0]]

    table = [
        {
            "input_ids": tokens.tolist(),
            "packed_indices": [words(position.tolist()) for position in ids],
            "exact_values": [position[:exact_k].tolist() for position in values],
            "coeffs": [coefficients(position[exact_k:]) for position in values],
        }
        for tokens, ids, values in rows
    ]
    pq.write_table(pa.Table.from_pylist(table), folder / "data_0.parquet")
