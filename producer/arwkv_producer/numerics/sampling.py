"""Repeatable draws from a next-token distribution: random numbers are a function of sample, position and draw.

Shapes: T positions, V vocabulary columns, S draws, G groups of B columns, R tensor-parallel ranks.
"""

import torch
from torch import Tensor

GROUP = 64
WORK_BYTES = 1 << 26
"""Maximum memory of drawing."""
_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, odd; int64 arithmetic wraps around
_BELOW_ONE = 1.0 - 2.0**-53
_MIX_1, _MIX_2 = -4658895280553007687, -7723592293110705685


def uniforms(keys_T: Tensor, positions_T: Tensor, draws: int) -> Tensor:
    """[T, S] float64 in [0, 1), counter-based: SplitMix64 (Steele, Lea, Flood 2014) of key, position and draw."""
    rows_T = _mix(_mix(keys_T.long() * _GOLDEN) + positions_T.long() * _GOLDEN)
    counters_S = torch.arange(1, draws + 1, device=keys_T.device) * _GOLDEN
    return _shift_right(_mix(rows_T[:, None] + counters_S), 11).double() * 2.0**-53


def draw(weights_TV: Tensor, uniforms_TS: Tensor) -> Tensor:
    """[T, S] int64 columns, column v with probability weights[v] / Σ weights; the weights are fp32 and not negative.

    Inverts the cumulative sum in two levels, groups of columns and then within the group, both in float64: exact
    for rare tokens, which one fp32 sum over the vocabulary would lose.
    """
    # Of a row: its padded weights in fp32 and fp64; of a draw: its group in fp32, fp64 and summed up.
    row_bytes = max(12 * weights_TV.shape[1], 24 * GROUP * uniforms_TS.shape[1])
    rows = max(WORK_BYTES // row_bytes, 1)
    blocks = [_draw(weights_TV[at : at + rows], uniforms_TS[at : at + rows]) for at in range(0, len(weights_TV), rows)]
    return torch.cat(blocks)


def split(masses_TR: Tensor, uniforms_TS: Tensor) -> tuple[Tensor, Tensor]:
    """For columns that are split over ranks: [T, S] the rank of each draw, and its number for `draw` on that rank.

    A rank without mass gets no draw. If no rank has mass, rank and number are valid but have no meaning.
    """
    masses_TR = masses_TR.double()
    rank_TS, residual_TS = _locate(masses_TR, uniforms_TS)
    return rank_TS, (residual_TS / masses_TR.gather(1, rank_TS)).clamp_(0.0, _BELOW_ONE)


def _draw(weights_TV: Tensor, uniforms_TS: Tensor) -> Tensor:
    missing = -weights_TV.shape[1] % GROUP
    grouped_TGB = torch.nn.functional.pad(weights_TV, (0, missing)).view(len(weights_TV), -1, GROUP)
    group_TS, residual_TS = _locate(grouped_TGB.sum(-1, dtype=torch.float64), uniforms_TS)
    inside_TSB = grouped_TGB.gather(1, group_TS[..., None].expand(-1, -1, GROUP)).double()
    at_TS = torch.searchsorted(inside_TSB.cumsum(-1), residual_TS[..., None].contiguous(), right=True).squeeze(-1)
    # Rounding may leave the target just past the group's last weight.
    last_TS = (torch.arange(GROUP, device=weights_TV.device) * (inside_TSB > 0)).amax(-1)
    return group_TS * GROUP + torch.minimum(at_TS, last_TS)


def _locate(masses_TG: Tensor, uniforms_TS: Tensor) -> tuple[Tensor, Tensor]:
    """[T, S] the group (or rank) that holds each number's share of the masses, and the remainder within that group."""
    below_TG = masses_TG.cumsum(-1)
    target_TS = uniforms_TS * below_TG[:, -1:]
    group_TS = torch.searchsorted(below_TG, target_TS, right=True).clamp_max_(below_TG.shape[1] - 1)
    return group_TS, target_TS - (below_TG.gather(1, group_TS) - masses_TG.gather(1, group_TS))


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
