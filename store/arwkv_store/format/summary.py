"""The summary of a dataset's manifests: the numbers that opening needs of every part, in one file beside dataset.json.

It is a cache. It is believed only for manifests that are still as it saw them, and is written anew at any time.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Self

import numpy as np
import zstandard
from numpy.typing import NDArray

SUMMARY_FILE = "manifests.summary"
MAX_SUMMARY_BYTES = 512 << 20
MAX_PARTS = 10_000_000
"""A summary of more is ignored: it would take 320 MB of memory."""
_VERSION = 1
_MAX_HEAD_BYTES = 256
_SEAL_BYTES = 32
_LEVEL = 3

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Summary:
    """For each part, in order: its number, rows and tokens, and the mark of its manifest: a number that changes when
    the manifest does."""

    parts: Numbers
    rows: Numbers
    tokens: Numbers
    marks: Numbers

    @property
    def unbroken(self) -> int:
        """How many parts from 0 on are there without a gap."""
        gaps = np.flatnonzero(self.parts != np.arange(len(self.parts)))
        return int(gaps[0]) if len(gaps) else len(self.parts)

    def to_bytes(self, dataset_hash: str) -> bytes:
        """A line of JSON, a zstd frame of the four columns as little-endian int64 (the parts as differences), and the
        SHA-256 of both."""
        head = {"format_version": _VERSION, "dataset_hash": dataset_hash, "parts": len(self.parts)}
        columns = np.stack([np.diff(self.parts, prepend=0), self.rows, self.tokens, self.marks]).astype("<i8")
        body = json.dumps(head).encode() + b"\n" + zstandard.ZstdCompressor(_LEVEL).compress(columns.tobytes())
        return body + hashlib.sha256(body).digest()

    @classmethod
    def from_bytes(cls, raw: bytes, dataset_hash: str) -> Self | None:
        """None for bytes that do not match their own hash, are of another dataset, or of another version."""
        body, seal = raw[:-_SEAL_BYTES], raw[-_SEAL_BYTES:]
        if len(raw) > MAX_SUMMARY_BYTES or hashlib.sha256(body).digest() != seal:
            return None
        line, newline, frame = body.partition(b"\n")
        try:
            head = json.loads(line[:_MAX_HEAD_BYTES])
            parts = head["parts"]
            if not newline or (head["format_version"], head["dataset_hash"]) != (_VERSION, dataset_hash):
                return None
            if not 0 <= parts <= MAX_PARTS or zstandard.frame_content_size(frame) != 4 * 8 * parts:
                return None
            plain = zstandard.ZstdDecompressor().decompress(frame)
        except (ValueError, KeyError, TypeError, zstandard.ZstdError):
            return None
        steps, rows, tokens, marks = np.frombuffer(plain, "<i8").reshape(4, -1).astype(np.int64)
        if (steps[1:] < 1).any() or (steps[:1] < 0).any() or (rows < 0).any() or (tokens < 0).any():
            return None
        return cls(np.cumsum(steps), rows, tokens, marks)


@dataclass(frozen=True)
class Present:
    """The committed parts' manifests as a listing shows them: (part, mark) in order. Parts below `unlisted` were not
    listed."""

    marks: list[tuple[int, int]]
    unlisted: int = 0


def mark(size_bytes: int, version: int) -> int:
    """The mark of a manifest of this size, and time in nanoseconds or 64-bit hash of its object's version."""
    return (version * 1_000_003 + size_bytes) & ((1 << 63) - 1)
