"""The heavy columns of a dataset, and the codec of each.

The codec is chosen by name in dataset.json and repeated in the Arrow field's metadata, so that a shard is
self-describing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arwkv_store.errors import UsageError
from arwkv_store.format.codecs import (
    hidden_bf16,
    hidden_fp8,
    hidden_int8,
    hidden_raw,
    logits_compact,
    logits_exact,
    logits_raw,
    logits_sampled,
    token_stats,
)
from arwkv_store.format.hidden_names import hidden_name
from arwkv_store.format.sample import Sample
from arwkv_store.format.schema import CaptureInfo, DatasetInfo

_LOGITS = {
    "exact": logits_exact,
    "compact": logits_compact,
    "sampled": logits_sampled,
    # The top k and the draws from the tail are ragged entries; rounding is acceptable for the estimated tail.
    "hybrid": logits_compact,
    "none": logits_raw,
}
_HIDDEN = {"bf16": hidden_bf16, "fp8": hidden_fp8, "int8": hidden_int8, "none": hidden_raw}
_LOSSY = ("fp8", "int8")


@dataclass(frozen=True)
class HeavyColumn:
    """One binary column: a sample's value as a cell, and back."""

    name: str
    codec: str
    shape: str
    encode: Callable[[Sample], bytes | None]
    decode: Callable[[NDArray[np.uint8], int], Any]
    """Cell and token count to the value: SparseLogits, (entropy, true_logprob), or hidden states [T, C]."""

    lossy: bool = False
    """Whether decoded hidden states may differ from the originals."""

    def metadata(self) -> dict[str, str]:
        """The metadata of the Arrow field."""
        return {"codec": self.codec, "shape": self.shape, "layout": "docs/format.md"}


def heavy_columns(info: DatasetInfo) -> dict[str, tuple[HeavyColumn, ...]]:
    """The heavy columns of the "rows" and the "hidden" file. Raises UsageError for a codec this release lacks."""
    if info.capture.tokens_only:
        return {"rows": (), "hidden": ()}
    rows = [] if info.capture.logits == "none" else [_logits_column(info)]
    hidden = [_hidden_column(name, info) for name in info.capture.hidden_columns()]
    return {"rows": (*rows, _token_stats_column()), "hidden": tuple(hidden)}


def max_count(info: DatasetInfo) -> int:
    """Maximum number of entries of a position under the dataset's capture settings."""
    capture, vocab_size = info.capture, info.tokenizer.vocab_size
    limits = {
        "top-k": capture.top_k,
        "adaptive": capture.top_k,
        "sampled": capture.samples,
        "hybrid": capture.top_k and capture.samples and capture.top_k + capture.samples,
    }
    return min(limits.get(capture.logits) or vocab_size, vocab_size)


def require_captured(sample: Sample, info: DatasetInfo) -> None:
    """Raise UsageError unless the sample holds exactly what the dataset captures."""
    where = f"sample {sample.sample_id}"
    if len(sample.tokens) > info.capture.max_length:
        raise UsageError(
            f"{where}: {len(sample.tokens)} tokens, the dataset's samples have {info.capture.max_length} at most"
        )
    if (sample.logits is None) != (info.capture.logits == "none"):
        raise UsageError(
            f"{where}: logits are {'missing' if sample.logits is None else 'given'}, "
            f"the dataset captures {info.capture.logits!r}"
        )
    if sample.logits is not None and sample.logits.counts.max() > max_count(info):
        raise UsageError(
            f"{where}: {sample.logits.counts.max()} entries at a position, "
            f"the dataset's capture allows {max_count(info)}"
        )
    if sample.logits is not None and _LOGITS[info.capture.logits_codec] is logits_compact:
        logits_compact.require_codes(where, sample.logits)
    if info.capture.tokens_only and sample.entropy is not None:
        raise UsageError(f"{where}: entropy is given, the dataset holds tokens alone")
    expected, given = set(info.capture.hidden_names()), set(sample.hidden)
    if expected != given:
        raise UsageError(f"{where}: hidden states {sorted(given)}, the dataset captures {sorted(expected)}")
    for name, states in sample.hidden.items():
        if states.shape[1] != info.teacher.hidden_size:
            raise UsageError(
                f"{where}: hidden {name!r} is {states.shape[1]} wide, the teacher {info.teacher.hidden_size}"
            )


def _logits_column(info: DatasetInfo) -> HeavyColumn:
    codec, limit = _named(_LOGITS, "logits codec", info.capture.logits_codec), max_count(info)

    def encode(sample: Sample) -> bytes | None:
        return None if sample.logits is None else codec.encode(sample.logits, limit)

    return HeavyColumn(
        "logits",
        info.capture.logits_codec,
        "counts [T], ids [N], logprobs [N], tail_logprob [T]",
        encode,
        lambda cell, tokens: codec.decode(cell, tokens, limit),
    )


def _token_stats_column() -> HeavyColumn:
    def encode(sample: Sample) -> bytes | None:
        if sample.entropy is None or sample.true_logprob is None:
            return None
        return token_stats.encode(sample.entropy, sample.true_logprob)

    return HeavyColumn("token_stats", "token_stats", "entropy [T] nats, true_logprob [T-1]", encode, token_stats.decode)


def _hidden_column(column: str, info: DatasetInfo) -> HeavyColumn:
    codec, name = _named(_HIDDEN, "hidden codec", info.capture.hidden_dtype), hidden_name(column)
    width = info.teacher.hidden_size
    return HeavyColumn(
        column,
        info.capture.hidden_dtype,
        f"[T, {width}]",
        lambda sample: codec.encode(sample.hidden[name]),
        lambda cell, tokens: codec.decode(cell, tokens, width),
        lossy=info.capture.hidden_dtype in _LOSSY,
    )


def _named(codecs: dict[str, Any], kind: str, name: str) -> Any:  # a module with encode and decode
    if name not in codecs:
        raise UsageError(f"{kind} {name!r} is unknown; choose one of {', '.join(codecs)}")
    return codecs[name]


def known_columns(capture: CaptureInfo) -> tuple[str, ...]:
    """Names that `open_dataset(columns=...)` accepts for such a dataset."""
    if capture.tokens_only:
        return ()
    logits = () if capture.logits == "none" else ("logits",)
    return (*logits, "token_stats", *capture.hidden_columns())
