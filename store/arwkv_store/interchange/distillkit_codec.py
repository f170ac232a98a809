"""DistillKit's compressed log-probabilities, in numpy: what its configuration says of a row, and back.

A position holds k entries by descending log-probability. `bytepacked_indices` are their ids, each of ceil(log2 d) bits,
highest bit first. `compressed_logprobs` are, one after another: the first `exact_k` values in `exact_dtype`; the
coefficients of a sum of terms of t = 0, 1, … that stands for the others, in `term_dtype`; and for each residual bin a
scale and integers of `element_bits` that are added to that sum. With `delta_encoding` all of these describe differences
from one entry to the next. The older form has the columns `packed_indices` (as many ids as fit, lowest bits first, in
64 bits), `exact_values` and `coeffs` (of powers of t = 1, 2, …).

Shapes: P positions, k entries of each.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from arwkv_store.errors import CorruptShard, UsageError

_Bytes = NDArray[np.uint8]
_Floats = NDArray[np.float32]
DTYPES: dict[str, Any] = {  # numpy and ml_dtypes share no type for dtypes
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
}
SPECIAL_TERMS = {"sqrt": np.sqrt, "exp": np.exp}
MOST_ENTRIES = 1 << 16


@dataclass(frozen=True)
class Bin:
    """Residuals of some entries: one scale, and an integer for each."""

    scale_dtype: str
    element_bits: int
    num_elements: int


@dataclass(frozen=True)
class Compression:
    """A `logprob_compressor` of DistillKit's configuration."""

    d: int
    k: int
    exact_k: int
    exact_dtype: str = "float32"
    polynomial_terms: tuple[int | str, ...] = ()
    term_dtype: str = "float32"
    residual_bins: tuple[Bin, ...] = ()
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    @property
    def id_bits(self) -> int:
        """Bits of a token id, by the logarithm that DistillKit takes in float32."""
        bits: int = math.ceil(np.log2(np.float32(self.d)))
        return bits

    @property
    def size_bytes(self) -> int:
        """Bytes of a position's `compressed_logprobs`."""
        return (
            self.exact_k * _size(self.exact_dtype)
            + len(self.polynomial_terms) * _size(self.term_dtype)
            + sum(_size(one.scale_dtype) + -(-one.num_elements * one.element_bits // 8) for one in self.residual_bins)
        )


@dataclass(frozen=True)
class LegacyCompression:
    """A `legacy_logit_compression` of DistillKit's configuration."""

    vocab_size: int
    k: int
    exact_k: int
    polynomial_degree: int
    invert_polynomial: bool = True
    with_sqrt_term: bool = False
    term_dtype: str = "float32"


def parsed(document: Mapping[str, Any], where: str) -> Compression | LegacyCompression:
    """The compression that a configuration names: alone, or inside a training run's `teacher`.

    Raises UsageError for an unknown or missing field, or a value that cannot be.
    """
    teacher = document.get("teacher", document)
    found = teacher.get("logprob_compressor") or teacher.get("legacy_logit_compression") or teacher
    kind = LegacyCompression if "polynomial_degree" in found else Compression
    try:
        fields = dict(found)
        if kind is Compression:
            fields["polynomial_terms"] = tuple(fields.get("polynomial_terms") or ())
            fields["residual_bins"] = tuple(Bin(**one) for one in fields.get("residual_bins") or ())
        compression = kind(**fields)
    except TypeError as error:
        raise UsageError(f"{where}: {error}; give DistillKit's own logprob_compressor") from error
    _require_possible(compression, where)
    return compression


def _require_possible(compression: Compression | LegacyCompression, where: str) -> None:
    if not 0 <= compression.exact_k <= compression.k or not 0 < compression.k <= MOST_ENTRIES:
        raise UsageError(f"{where}: k {compression.k} and exact_k {compression.exact_k}; needed 0 <= exact_k <= k")
    dtypes = [compression.term_dtype]
    if isinstance(compression, Compression):
        dtypes += [compression.exact_dtype, *(one.scale_dtype for one in compression.residual_bins)]
        unknown = [term for term in compression.polynomial_terms if type(term) is not int and term not in SPECIAL_TERMS]
        if unknown:
            raise UsageError(f"{where}: polynomial term {unknown[0]!r}; known are whole numbers, sqrt and exp")
        approximated = compression.k - compression.exact_k
        if sum(one.num_elements for one in compression.residual_bins) > approximated or not all(
            1 <= one.element_bits <= 63 for one in compression.residual_bins
        ):
            raise UsageError(f"{where}: residual_bins do not fit the {approximated} approximated entries")
    if unknown_dtypes := [name for name in dtypes if name not in DTYPES]:
        raise UsageError(f"{where}: dtype {unknown_dtypes[0]!r}; known are {', '.join(DTYPES)}")


def decoded_ids(packed: _Bytes, compression: Compression, where: str) -> NDArray[np.int64]:
    """[P, k] token ids of `bytepacked_indices` [P, bytes]."""
    _require_width(packed, -(-compression.k * compression.id_bits // 8), where)
    return unpacked(packed, compression.id_bits, compression.k)


def decoded_logprobs(packed: _Bytes, compression: Compression, where: str) -> _Floats:
    """[P, k] values of `compressed_logprobs` [P, bytes], in float32 throughout.

    DistillKit's own reader rounds to `exact_dtype` in between and at the end.
    """
    _require_width(packed, compression.size_bytes, where)
    P, approximated = len(packed), compression.k - compression.exact_k
    at = compression.exact_k * _size(compression.exact_dtype)
    exact = _floats(packed[:, :at], compression.exact_dtype)
    rest = np.zeros((P, approximated), np.float32)
    if compression.polynomial_terms:
        end = at + len(compression.polynomial_terms) * _size(compression.term_dtype)
        rest += _floats(packed[:, at:end], compression.term_dtype) @ _terms(compression).T
        at = end
    first = 0
    for one in compression.residual_bins:
        end = at + _size(one.scale_dtype)
        scale = _floats(packed[:, at:end], one.scale_dtype)
        at, end = end, end + -(-one.num_elements * one.element_bits // 8)
        steps = unpacked(packed[:, at:end], one.element_bits, one.num_elements).astype(np.float32)
        # One bit stands for -1 or 1; more bits for a whole number that its lowest value was taken from.
        centred = steps * 2 - 1 if one.element_bits == 1 else steps - np.float32(2.0 ** (one.element_bits - 1))
        rest[:, first : first + one.num_elements] += centred * scale
        at, first = end, first + one.num_elements
    values = np.concatenate([exact, rest], axis=1)
    return np.cumsum(values, axis=1, dtype=np.float32) if compression.delta_encoding else values


def legacy_ids(packed: NDArray[np.uint64], compression: LegacyCompression, where: str) -> NDArray[np.int64]:
    """[P, k] token ids of `packed_indices` [P, words]."""
    bits = math.ceil(np.log2(np.float32(compression.vocab_size)))
    together = 64 // bits
    _require_width(packed, -(-compression.k // together), where)
    shifts = (np.arange(together, dtype=np.uint64) * np.uint64(bits))[None, None]
    ids = (packed[:, :, None] >> shifts) & np.uint64((1 << bits) - 1)
    return ids.reshape(len(packed), -1)[:, : compression.k].astype(np.int64)


def legacy_values(exact: _Floats, coefficients: _Floats, compression: LegacyCompression, where: str) -> _Floats:
    """[P, k] values of `exact_values` and `coeffs`."""
    t = np.arange(1, compression.k - compression.exact_k + 1, dtype=np.float32)
    sign = -1 if compression.invert_polynomial else 1
    terms = [t ** np.float32(sign * power) for power in range(compression.polynomial_degree + 1)]
    terms += [np.sqrt(t)] if compression.with_sqrt_term else []
    _require_width(exact, compression.exact_k, where)
    if not len(t):
        return exact.astype(np.float32)
    _require_width(coefficients, len(terms), where)
    values: _Floats = np.concatenate([exact, coefficients @ np.stack(terms)], axis=1).astype(np.float32)
    return values


def unpacked(packed: _Bytes, bits: int, n: int) -> NDArray[np.int64]:
    """[P, n] integers of `bits` each, highest bit first, one behind the other in bytes [P, ceil(n bits / 8)]."""
    if bits > 25:
        spread = np.unpackbits(packed, axis=1, count=n * bits).reshape(len(packed), n, bits)
        total: NDArray[np.int64] = (spread * (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))).sum(-1)
        return total
    # Of the four bytes from the one that an integer begins in, as one number.
    begin = np.arange(n) * bits
    padded = np.pad(packed, ((0, 0), (0, 4)))
    word = np.zeros((len(packed), n), np.uint32)
    for place in range(4):
        word = (word << np.uint32(8)) | padded[:, (begin >> 3) + place]
    shift = (32 - bits - (begin & 7)).astype(np.uint32)
    return ((word >> shift) & np.uint32((1 << bits) - 1)).astype(np.int64)


def packed_ids(ids: NDArray[np.int64], bits: int) -> _Bytes:
    """The reverse of `unpacked`."""
    spread = (ids[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(spread.reshape(len(ids), -1).astype(np.uint8), axis=1)


def _terms(compression: Compression) -> _Floats:
    """[approximated entries, terms]"""
    n = compression.k - compression.exact_k
    t = np.linspace(0, 1, n) if compression.normalize_t else np.arange(n)
    dtype = DTYPES[compression.term_dtype]
    points = t.astype(dtype).astype(np.float64)
    columns = [
        points**term if isinstance(term, int) else SPECIAL_TERMS[term](points) for term in compression.polynomial_terms
    ]
    terms: _Floats = np.stack(columns, axis=1).astype(dtype).astype(np.float32)
    return terms


def _floats(raw: _Bytes, dtype: str) -> _Floats:
    values: _Floats = np.ascontiguousarray(raw).view(DTYPES[dtype]).astype(np.float32)
    return values


def _size(dtype: str) -> int:
    return int(np.dtype(DTYPES[dtype]).itemsize)


def _require_width(cells: NDArray[Any], width: int, where: str) -> None:
    if cells.ndim != 2 or cells.shape[1] != width:
        found = cells.shape[1] if cells.ndim == 2 else "ragged"
        raise CorruptShard(
            f"{where}: {found} values at a position, the compression's settings say {width}; "
            "name the settings of this capture with --compression FILE"
        )
