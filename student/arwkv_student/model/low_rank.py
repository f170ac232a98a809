"""The low-rank projections of RWKV-7, whose outputs depend on the data: decay, in-context learning rate, gates."""

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import initialization as init


class LowRank(nn.Module):
    """bias + φ(x·down)·up, the data-dependent vectors of RWKV-7: (w0, w1, w2), (a0, a1, a2), (v0, v1, v2), (g1, g2)."""

    def __init__(
        self,
        width_in: int,
        rank: int,
        width_out: int,
        *,
        activation: Literal["none", "tanh", "sigmoid"],
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(width_in, rank, bias=False)
        self.up = nn.Linear(rank, width_out, bias=False)
        self.bias = nn.Parameter(torch.zeros(width_out)) if bias else None
        self.activation = activation

    def forward(self, x_BTC: Tensor) -> Tensor:
        """[B, T, width_out] in fp32, because it is the argument of an exponential, for which bf16 is too coarse."""
        inner = self.down(x_BTC)
        if self.activation != "none":
            inner = torch.tanh(inner) if self.activation == "tanh" else torch.sigmoid(inner)
        y: Tensor = self.up(inner)
        return y.float() if self.bias is None else y + self.bias.float()

    @torch.no_grad()
    def initialize(self, bias_W: Tensor) -> None:
        """Start with this bias for every input."""
        init.zeros_(self.down.weight)
        init.orthogonal_(self.up.weight, gain=0.1)
        init.copy_(self.bias, bias_W)
