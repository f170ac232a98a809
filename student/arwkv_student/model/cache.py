"""The recurrent cache: a state of constant size per time mixer, keys and values only where attention was kept."""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from arwkv_student.model.configuration import ArwkvConfig
from arwkv_student.model.time_mix import TimeMixState


class TimeMixCacheLayer(CacheLayerMixin):  # type: ignore[misc] # transformers is untyped
    """One time mixer's state, in the form transformers' caches expect of a layer."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.state: TimeMixState | None = None
        self.seen_tokens = 0

    def lazy_initialization(self, *_: Tensor) -> None:
        raise TypeError("a time mixer's cache holds no keys; use ArwkvCache.keep_time_mix_state")

    update = lazy_initialization

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen_tokens + query_length, 0

    def get_seq_length(self) -> int:
        return self.seen_tokens

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length

    def reset(self) -> None:
        self.state, self.seen_tokens = None, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences at `indices`."""
        if self.state is not None:
            self.state = TimeMixState(*(x.index_select(0, indices.to(x.device)) for x in self.state))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence `repeats` times."""
        if self.state is not None:
            self.state = TimeMixState(*(x.repeat_interleave(repeats, dim=0) for x in self.state))


class ArwkvCache(Cache):  # type: ignore[misc] # transformers is untyped
    """Per layer a `TimeMixCacheLayer`, or keys and values where the layer kept its attention.

    Its size does not depend on the number of tokens seen (except in attention layers). `state_dict` and
    `from_state_dict` save and restore it.
    """

    def __init__(self, config: ArwkvConfig) -> None:
        self._options = config.time_mix_options
        kinds = config.layer_types or []
        super().__init__(
            layers=[TimeMixCacheLayer() if kind == "linear_attention" else DynamicLayer() for kind in kinds]
        )

    def time_mix_state(self, layer: int, x_BTC: Tensor) -> TimeMixState:
        """The state before `x_BTC`'s first token: zeros at a sequence's start."""
        state: TimeMixState | None = self.layers[layer].state
        if state is not None:
            return state
        batch, heads, size = x_BTC.shape[0], self._options.num_heads, self._options.head_dim
        wkv = torch.zeros(batch, heads, size, size, dtype=torch.float32, device=x_BTC.device)
        return TimeMixState(torch.zeros_like(x_BTC[:, 0]), wkv)

    def keep_time_mix_state(self, layer: int, state: TimeMixState, tokens: int) -> None:
        """Store the state after `tokens` more tokens."""
        self.layers[layer].state = state
        self.layers[layer].seen_tokens += tokens

    def detach(self) -> None:
        """End gradients here: later tokens still read the state, and do not train what made it."""
        for layer in self.layers:
            if not isinstance(layer, TimeMixCacheLayer):
                if layer.get_seq_length():
                    layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
            elif layer.state is not None:
                layer.state = TimeMixState(*(x.detach() for x in layer.state))

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by name: what safetensors or `torch.save` can keep."""
        kept: dict[str, Tensor] = {}
        for index, layer in enumerate(self.layers):
            if isinstance(layer, TimeMixCacheLayer):
                kept[f"{index}.seen_tokens"] = torch.tensor(layer.seen_tokens)
                if layer.state is not None:
                    kept |= {f"{index}.{name}": x for name, x in layer.state._asdict().items()}
            elif layer.get_seq_length():
                kept |= {f"{index}.keys": layer.keys, f"{index}.values": layer.values}
        return {name: x.contiguous() for name, x in kept.items()}

    @classmethod
    def from_state_dict(cls, config: ArwkvConfig, kept: dict[str, Tensor]) -> "ArwkvCache":
        """The cache that `state_dict` saved; generation continues from it."""
        cache = cls(config)
        for index, layer in enumerate(cache.layers):
            if isinstance(layer, TimeMixCacheLayer):
                layer.seen_tokens = int(kept[f"{index}.seen_tokens"])
                if f"{index}.wkv_BHDD" in kept:
                    layer.state = TimeMixState(*(kept[f"{index}.{name}"] for name in TimeMixState._fields))
            elif f"{index}.keys" in kept:
                layer.update(kept[f"{index}.keys"], kept[f"{index}.values"])
        return cache
