"""The base's attention blocks and their norms, to compute attention outputs from a residual stream.

Stage align needs them for shards that hold no attention outputs: `boundaries`, or tokens alone.
Shape legend: B batch, T time, C model width, L layers.
"""

import copy
from collections.abc import Sequence

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from arwkv_student.bases.attention_function import NAME
from arwkv_student.bases.checkpoint import BaseCheckpoint
from arwkv_student.model.architectures import attention_windows


class BaseAttention(nn.Module):
    """The normed attention of the chosen layers, frozen; no MLP, embedding or head is loaded."""

    def __init__(self, base: BaseCheckpoint, layers: Sequence[int], dtype: torch.dtype = torch.float32) -> None:
        """`dtype`: of the projections' weights; bf16 saves half of them where autocast would round them anyway."""
        super().__init__()
        architecture, config = base.architecture, copy.deepcopy(base.family_config)
        config._attn_implementation = NAME
        self.windows = attention_windows(config)
        self.rotary_emb = architecture.rotary_embedding(config)
        norm = architecture.norms.before_mixer
        with init_empty_weights():
            self.blocks = nn.ModuleDict({str(layer): architecture.attention(config, layer) for layer in layers})
            norms = {str(layer): nn.Identity() if norm is None else architecture.norm(config) for layer in layers}
        self.norms = nn.ModuleDict(norms)
        for layer in self.blocks:
            _load(self.blocks[layer], base, f"model.layers.{layer}.self_attn.", dtype)
            _load(self.norms[layer], base, f"model.layers.{layer}.{norm}.", dtype)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, layer: int, stream_BTC: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        """The attention output [B, T, C] of one layer for the stream that enters it; padding on the right.

        Causal, and within the base's sliding window where the layer has one.

        `cu_seqlens` [n + 1]: documents packed along T, with B = 1, which do not affect each other.
        """
        x_BTC = self.norms[str(layer)](stream_BTC)
        if cu_seqlens is None:
            return self.attend(layer, x_BTC)
        documents = torch.split(x_BTC, cu_seqlens.diff().tolist(), dim=1)
        return torch.cat([self.attend(layer, document) for document in documents], dim=1)

    @torch.no_grad()
    def attend(self, layer: int, x_BTC: Tensor) -> Tensor:
        """The attention output [B, T, C] of one layer for its normed input; padding on the right."""
        positions = torch.arange(x_BTC.shape[1], device=x_BTC.device)[None]
        block, mask_TT, window = self.blocks[str(layer)], None, self.windows[layer]
        if window is not None and window < x_BTC.shape[1]:
            distance_TT = positions.T - positions
            mask_TT = ((distance_TT >= 0) & (distance_TT < window))[None, None]
        output_BTC: Tensor = block(
            hidden_states=x_BTC, position_embeddings=self.rotary_emb(x_BTC, positions), attention_mask=mask_TT
        )[0]
        return output_BTC


def _load(module: nn.Module, base: BaseCheckpoint, prefix: str, dtype: torch.dtype) -> None:
    """Give a module without memory its tensors: those of projections in `dtype`, norms in fp32."""
    own = {prefix + name: name for name in module.state_dict()}
    for stored, tensor in base.tensors(own):
        name, _, attribute = own[stored].rpartition(".")
        part = module.get_submodule(name)
        base.require_shape(stored, tensor.shape, part.get_parameter(attribute).shape)
        values = tensor.to(dtype if isinstance(part, nn.Linear) else torch.float32, copy=True)
        part.register_parameter(attribute, nn.Parameter(values, requires_grad=False))
