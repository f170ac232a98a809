"""The size of a capture: stored bytes by column, and bytes in memory before they are stored.

Stored bytes follow measurements with a synthetic teacher of 152,064 tokens (section Store of docs/benchmarks.md) and of
captures of small teachers; `bytes_by_column` of a real capture has the values for its text and teacher.
"""

import math

from arwkv_producer.config import GenerateConfig
from arwkv_store.format.schema import CaptureInfo

SHARD_TARGET_BYTES = 256 << 20
SHARD_LIMIT_BYTES = 2 << 30
FEWEST_SAMPLES, MOST_SAMPLES = 8, 4096
"""Minimum and maximum samples in a part; fewer if a part of the minimum would exceed SHARD_LIMIT_BYTES."""
HIDDEN_BYTES = {"bf16": 1.4, "fp8": 0.87, "int8": 1.0}
"""Stored bytes per hidden value, about (byte planes and zstd)."""
ENTRY_BYTES = {"exact": (2.5, 12.0), "compact": (0.45, 6.5), "hybrid": (0.45, 6.5), "sampled": (0.2, 2.0)}
"""Stored bytes of an entry's log-probability (of an fp32 head) and of a position's count, tail and first entry."""
STATISTICS_BYTES = 7.0
"""Entropy and the true token's log-probability."""
TOKEN_BYTES, SAMPLE_BYTES, SHARD_BYTES = 4.2, 64, 4096
"""Bytes of a row's token and mask; the other bytes of a row, and of a file."""
PARTS_BEFORE_WRITING = 2
"""Parts in memory besides those being written: one is captured, one waits."""


def stored_bytes(capture: CaptureInfo, width: int, vocab_size: int) -> dict[str, float]:
    """Expected stored bytes of one token of a full-length sample, by column as in a shard's statistics."""
    columns = {"rows": TOKEN_BYTES + SAMPLE_BYTES / capture.max_length}
    if capture.logits != "none":
        columns |= {"logits": logits_bytes(capture, expected_entries(capture), vocab_size)}
        columns |= {"token_stats": STATISTICS_BYTES}
    return columns | dict.fromkeys(capture.hidden_columns(), width * HIDDEN_BYTES[capture.hidden_dtype])


def logits_bytes(capture: CaptureInfo, entries: float, vocab_size: int) -> float:
    """Expected stored bytes of a position with so many entries: ids hardly compress, log-probabilities do."""
    per_entry, per_position = ENTRY_BYTES[capture.logits_codec]
    return entries * (max(math.log2(vocab_size) / 8, 1.0) + per_entry) + per_position


def expected_entries(capture: CaptureInfo) -> float:
    """Number of entries of a position on natural text (1.6 nats of entropy).

    Draws repeat: S of them from the whole distribution give about S^0.57 different tokens, S from the tail alone about
    S / (1 + S / 70).
    """
    k, draws = capture.top_k or 0, capture.samples or 0
    if capture.logits == "adaptive":
        of_64 = 64.0 if capture.top_p is None or capture.top_p >= 1 else -7 * math.log(1 - capture.top_p) - 3
        return float(min(max(of_64 * (k / 64) ** 0.6, 1.0), k))
    if capture.logits == "sampled":
        return float(draws**0.57)
    return k + draws / (1 + draws / 70)


def row_bytes(capture: CaptureInfo, width: int) -> int:
    """Bytes of one captured token in memory: candidates, draws, statistics, hidden states in bf16, token and mask."""
    kept = 0 if capture.logits == "none" else (capture.top_k or 1) * 8 + (capture.samples or 0) * 4 + 12
    return kept + len(capture.hidden_columns()) * width * 2 + 5


def samples_per_part(config: GenerateConfig, capture: CaptureInfo, width: int) -> int:
    """As asked, or as many full-length samples as keep a part's files near SHARD_TARGET_BYTES.

    The result is part of a dataset's identity, so the bytes per token used here never change; `stored_bytes` may.
    """
    if config.samples_per_shard:
        return config.samples_per_shard
    columns = [2.0]
    if capture.logits != "none":
        kept = (capture.top_k or 0) * (0.4 if capture.logits == "adaptive" else 1.0) + (capture.samples or 0) * 0.25
        columns += [kept * 4.0 + 4, 8.0]
    columns += [width * {"bf16": 1.4, "fp8": 1.0, "int8": 1.0}[config.hidden_dtype]] * len(capture.hidden_columns())
    sample_bytes = sum(columns) * config.max_length
    fewest = min(FEWEST_SAMPLES, max(SHARD_LIMIT_BYTES // sample_bytes, 1))
    return int(min(max(SHARD_TARGET_BYTES // sample_bytes, fewest), MOST_SAMPLES))
