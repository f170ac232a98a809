"""Initial values of RWKV-7's data-dependent vectors, by channel. C model width, W width of all heads."""

import torch
from torch import Tensor


def decay_bias(width: int, depth: float) -> Tensor:
    """[W] from slow to fast channels; `depth` from 0 (first layer) to 1 (last)."""
    ramp_W: Tensor = torch.linspace(0.0, 1.0, width) ** (1.0 + depth**0.3)
    return -5.5 + 6.0 * ramp_W


def iclr_bias(width: int) -> Tensor:
    """[W] of the in-context learning rate."""
    return 0.4 * (torch.linspace(0.0, 1.0, width) - 0.5) - 0.19


def shift_mixes(width: int, depth: float) -> Tensor:
    """μ [6, C] of r, w, k, v, a, g: deeper layers (`depth` from 0 to below 1) and later channels look back less."""
    ramp, late = torch.arange(width) / width, 1.0 - depth
    powers = [0.2 * late, 0.9 * late, 0.7 * late, 0.7 * late, 0.9 * late, 0.2 * late]
    return torch.stack([1.0 - ramp**power for power in powers])
