"""float32 to bf16, rounded to nearest even, and how far a lossy codec strays from what it was given."""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray


def to_bf16(values: NDArray[np.float32]) -> NDArray[ml_dtypes.bfloat16]:
    """Finite float32 values as bf16; `values` is used as scratch. Several times faster than a cast."""
    bits = values.view(np.uint32)
    bits += ((bits >> 16) & 1) + np.uint32(0x7FFF)
    rounded: NDArray[ml_dtypes.bfloat16] = (bits >> 16).astype(np.uint16).view(ml_dtypes.bfloat16)
    return rounded


@dataclass
class ChannelError:
    """Sums over the tokens seen so far, per channel [C]."""

    error: NDArray[np.float64]
    norm: NDArray[np.float64]

    @classmethod
    def of(cls, states: NDArray[Any], decoded: NDArray[Any]) -> "ChannelError":
        """Squared error and squared norm of each channel of states [T, C]."""
        exact = states.astype(np.float64)
        difference = decoded.astype(np.float64) - exact
        return cls((difference * difference).sum(0), (exact * exact).sum(0))

    def __add__(self, other: "ChannelError") -> "ChannelError":
        return ChannelError(self.error + other.error, self.norm + other.norm)

    def worst(self) -> float:
        """Largest relative L2 error of a channel."""
        ratio = np.divide(self.error, self.norm, out=np.zeros_like(self.error), where=self.norm > 0)
        return float(np.sqrt(ratio.max(initial=0)))
