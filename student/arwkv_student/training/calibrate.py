"""`--init calibrated`: time mixers fitted to the attention they replace, before any gradient step.

Two parts. Receptance, key and value start from the base's q, k and v (their rows repeated where several attention heads
share them), without the token shift on these three. The output projection is then solved for: with y what a mixer hands
to its projection and a what the attention said, both stage 1's over n tokens, ridge regression gives

    W_outᵀ = (YᵀY + λI)⁻¹ YᵀA,   λ = RIDGE · mean of the diagonal of YᵀY

Every mixer sees the teacher's own stream, so all layers are solved from one pass, and only YᵀY and YᵀA are kept.
Shape legend: B batch, T time, n tokens, C model width, W width of all heads.
"""

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from arwkv_store.commands.progress import Progress
from arwkv_student.bases.attention import BaseAttention
from arwkv_student.bases.checkpoint import BaseCheckpoint
from arwkv_student.data.collate import ShardSamples, collate
from arwkv_student.data.mixture import MixtureSampler
from arwkv_student.losses.objectives import align_loss_L
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.model.time_mix import TimeMix
from arwkv_student.training.align import LayerLoss, align_losses

RIDGE = 1e-3
SHIFTED_ROWS = [0, 2, 3]
"""Rows of `TimeMix.shift_mix` for receptance, key and value."""


@dataclass
class Moments:
    """What one layer's solve needs of all tokens, summed in fp64."""

    gram_WW: Tensor
    cross_WC: Tensor
    size: float = 0.0
    """‖A‖²."""

    @classmethod
    def zero(cls, output: nn.Linear) -> "Moments":
        """Before any token."""
        W, C = output.in_features, output.out_features
        gram_WW = torch.zeros(W, W, dtype=torch.float64, device=output.weight.device)
        return cls(gram_WW, gram_WW.new_zeros(W, C))

    def add(self, y_nW: Tensor, attention_nC: Tensor) -> None:
        """Products in fp32 whatever autocast says, sums in fp64."""
        with torch.autocast(y_nW.device.type, enabled=False):
            y_nW, attention_nC = y_nW.float(), attention_nC.float()
            self.gram_WW += (y_nW.T @ y_nW).double()
            self.cross_WC += (y_nW.T @ attention_nC).double()
            self.size += float(attention_nC.square().sum())

    def solved(self) -> tuple[Tensor, float]:
        """The projection [C, W], and the relative error ‖A − Y Wᵀ‖ / ‖A‖ that it leaves on these tokens."""
        ridge = RIDGE * self.gram_WW.diagonal().mean().clamp_min(1e-30)
        eye_WW = torch.eye(len(self.gram_WW), dtype=torch.float64, device=self.gram_WW.device)
        weight_WC = torch.linalg.solve(self.gram_WW + ridge * eye_WW, self.cross_WC)
        explained = (weight_WC * (2 * self.cross_WC - self.gram_WW @ weight_WC)).sum()
        error = max(0.0, 1.0 - float(explained) / max(self.size, 1e-24)) ** 0.5
        return weight_WC.T, error


class Calibration(NamedTuple):
    """What a calibration found."""

    untrained_loss: float
    """Stage 1's loss of the student before it, over the first batch."""
    relative_errors: dict[int, float]
    """What each layer's solve leaves, ‖A − Y Wᵀ‖ / ‖A‖, by layer."""
    tokens: int
    """How many it read."""


@torch.no_grad()
def calibrate(
    model: ArwkvForCausalLM,
    base: BaseCheckpoint,
    batches: Iterable[dict[str, Tensor]],
    base_attention: BaseAttention | None = None,
) -> Calibration:
    """Fit every time mixer of `model` in place.

    `batches` are `collate`d stage-1 data: attention outputs; or boundaries, or tokens alone, and `base_attention`.
    """
    mixers = {layer: model.model.layers[layer].time_mix for layer in model.config.time_mix_layers}
    moments = {layer: Moments.zero(mixer.output) for layer, mixer in mixers.items()}
    untrained_loss, tokens = math.nan, 0
    with _handed_to_outputs(mixers) as y_of_layer:
        for number, batch in enumerate(batches):
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            mask_BT = batch["attention_mask"].bool()
            tokens += int(mask_BT.sum())
            if number == 0:
                untrained_loss = float(align_losses(model, batch, base_attention, _loss_over(mask_BT)).mean())
                _start_from_attention(mixers, base)
            align_losses(model, batch, base_attention, _added_to(moments, y_of_layer, mask_BT))
    errors = {}
    for layer, mixer in mixers.items():
        weight_CW, errors[layer] = moments[layer].solved()
        mixer.output.weight.copy_(weight_CW)
    return Calibration(untrained_loss, errors, tokens)


def _loss_over(mask_BT: Tensor) -> LayerLoss:
    return lambda _, mixed_BTC, attention_BTC: align_loss_L([mixed_BTC], [attention_BTC], mask_BT)[0]


def _added_to(moments: dict[int, Moments], y_of_layer: dict[int, Tensor], mask_BT: Tensor) -> LayerLoss:
    def add(layer: int, _mixed_BTC: Tensor, attention_BTC: Tensor) -> Tensor:
        moments[layer].add(y_of_layer.pop(layer)[mask_BT], attention_BTC[mask_BT])
        return attention_BTC.new_zeros(())

    return add


def calibration_batches(
    samples: ShardSamples, weights: Sequence[float], batch_size: int, tokens: int, seed: int
) -> Iterator[dict[str, Tensor]]:
    """The first batches of an epoch in training's order, until they hold so many tokens."""
    rows = [dataset.shard_rows for dataset in samples.datasets]
    picks = iter(MixtureSampler(rows, weights, math.ceil(len(samples) / batch_size), batch_size, seed))
    with Progress("calibrate", min(tokens, sum(dataset.tokens for dataset in samples.datasets))) as progress:
        while tokens > 0 and (chosen := list(itertools.islice(picks, batch_size))):
            batch = collate([samples[pick] for pick in chosen])
            read = int(batch["attention_mask"].sum())
            yield batch
            progress.advance(read)
            tokens -= read


@contextlib.contextmanager
def _handed_to_outputs(mixers: dict[int, TimeMix]) -> Iterator[dict[int, Tensor]]:
    """While the block runs: the latest y [B, T, W] that each mixer handed to its output projection."""
    y_of_layer: dict[int, Tensor] = {}

    def keep(layer: int, inputs: tuple[Tensor, ...]) -> None:
        y_of_layer[layer] = inputs[0]

    hooks = [
        mixer.output.register_forward_pre_hook(lambda _, inputs, layer=layer: keep(layer, inputs))
        for layer, mixer in mixers.items()
    ]
    try:
        yield y_of_layer
    finally:
        for hook in hooks:
            hook.remove()


def _start_from_attention(mixers: dict[int, TimeMix], base: BaseCheckpoint) -> None:
    """Copy q, k and v where the mixers' heads are as wide together as the base's; elsewhere they stay random."""
    head_dim = base.shape.head_dim
    names = {
        f"model.layers.{layer}.self_attn.{source}_proj.weight": getattr(mixer, target)
        for layer, mixer in mixers.items()
        for source, target in (("q", "receptance"), ("k", "key"), ("v", "value"))
    }
    for name, weight_UC in base.tensors(names):
        linear = names[name]
        rows = _repeated(weight_UC, head_dim, linear.out_features)
        if rows is not None:
            linear.weight.copy_(rows)
    for mixer in mixers.values():
        if mixer.options.token_shift:
            mixer.shift_mix[SHIFTED_ROWS] = 0.0
    torch.clear_autocast_cache()  # autocast keeps the copies that an earlier forward made of these weights


def _repeated(weight_UC: Tensor, head_dim: int, rows: int) -> Tensor | None:
    """The weight with its heads' rows repeated to so many rows; None where that does not come out even."""
    repeats, rest = divmod(rows, len(weight_UC))
    if rest:
        return None
    heads_GDC = weight_UC.view(-1, head_dim, weight_UC.shape[1])
    return heads_GDC.repeat_interleave(repeats, dim=0).flatten(0, 1)
