"""Measures a part as it is written: bytes by column, and the error of lossy hidden states."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from arwkv_store.errors import UsageError
from arwkv_store.format.codecs.rounding import ChannelError
from arwkv_store.format.columns import HeavyColumn
from arwkv_store.format.hidden_names import hidden_name
from arwkv_store.format.sample import Sample

MAX_CHANNEL_ERROR = 0.1
"""Largest relative L2 error of any channel over a part; above it the part is not committed."""


@dataclass
class Tally:
    """Counts cells as they are written."""

    size_bytes: Counter[str] = field(default_factory=Counter)
    _errors: dict[str, ChannelError] = field(default_factory=dict)

    def add(self, column: HeavyColumn, sample: Sample, cell: bytes | None) -> None:
        """Count one cell of one sample; a lossy one is decoded and compared."""
        if cell is None:
            return
        self.size_bytes[column.name] += len(cell)
        if column.lossy:
            decoded = column.decode(np.frombuffer(cell, np.uint8), len(sample.tokens))
            error = ChannelError.of(sample.hidden[hidden_name(column.name)], decoded)
            known = self._errors.get(column.name)
            self._errors[column.name] = error if known is None else known + error

    def worst_channel_error(self) -> dict[str, float]:
        """By hidden column; lossless columns are left out."""
        return {name: error.worst() for name, error in self._errors.items()}

    def require_faithful(self, part: int) -> None:
        """Raise UsageError if the error of a lossy column is too large for training."""
        for name, error in self.worst_channel_error().items():
            if error > MAX_CHANNEL_ERROR:
                raise UsageError(
                    f"part {part}: {name}: a channel's relative error is {error:.3g}, "
                    f"the bound is {MAX_CHANNEL_ERROR}; capture with --hidden-dtype bf16"
                )
