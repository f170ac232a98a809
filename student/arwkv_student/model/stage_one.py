"""Stage 1 inside the model: what a layer's time mixer learns, and its gradient as soon as its loss is there.

Layer l's loss reaches the parameters of its own mixer, and with a differentiable value residual the first mixer's
value. So its backward pass runs before the next layer's forward pass, and only one layer's activations are kept.
Shape legend: B batch, T time, C model width.
"""

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class AttentionTargets(Protocol):
    """The teacher's residual stream, its attention outputs, and the loss of a mixer that is to give the same."""

    @property
    def rebuilds(self) -> bool:
        """Whether each layer makes the stream that enters the next; otherwise `stream` has every one."""

    def stream(self, layer: int, rebuilt_BTC: Tensor) -> Tensor:
        """The stream [B, T, C] that enters the layer."""

    def attention(self, layer: int, stream_BTC: Tensor) -> Tensor | None:
        """The teacher's attention output [B, T, C]; None of a layer that keeps its attention, which computes it."""

    def loss(self, layer: int, mixed_BTC: Tensor, attention_BTC: Tensor) -> Tensor:
        """The layer's loss, a scalar."""


def with_gradient_at_once(loss: Tensor, inputs: Iterable[Tensor]) -> Tensor:
    """The same loss, whose gradient for `inputs` is computed now; the activations behind it are freed.

    A later `backward` multiplies the gradient and hands it on, to accumulation and to the hooks of DDP and FSDP2.
    """
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    if not (torch.is_grad_enabled() and loss.requires_grad):
        return loss
    with torch.autocast(loss.device.type, enabled=False):  # as for every backward pass
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    known: Tensor = _Known.apply(loss.detach(), list(gradients), *wanted)  # type: ignore[no-untyped-call] # torch's
    return known


class _Known(torch.autograd.Function):
    """A scalar with the gradients of its inputs."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor | None], *_inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        return None, None, *(None if gradient is None else gradient.mul_(scale) for gradient in gradients)
