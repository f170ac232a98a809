"""A student's time mixer in vLLM: one call computes the tokens of every sequence of a batch.

The states lie in vLLM's cache. A batch holds the sequences that decode one token first, then those that read several.

Shape legend: N tokens of the batch, S sequences, C model width, U width of all key-value heads, H heads, D head size.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.v1.attention.backends.mamba1_attn import Mamba1AttentionBackend, Mamba1AttentionMetadata
from vllm.v1.attention.backends.mamba_attn import BaseMambaAttentionMetadataBuilder
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from arwkv_kernels import wkv7, wkv7_step
from arwkv_student.model.cpu_step import can_step
from arwkv_student.model.elementwise import mixed_output, recurrence_inputs
from arwkv_student.model.time_mix import Projected, TimeMix, recurrence_dtype
from arwkv_student.model.time_mix_options import TimeMixOptions


def state_shapes(options: TimeMixOptions, hidden_size: int) -> tuple[tuple[int, ...], ...]:
    """Of one sequence in one layer: the recurrent state, and the last token's input where tokens are shifted."""
    recurrent = (options.num_heads, options.head_dim, options.head_dim)
    return (recurrent, (hidden_size,)) if options.token_shift else (recurrent,)


def state_dtypes(options: TimeMixOptions, dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """Of `state_shapes`; what is wider stands first, so that each lies aligned."""
    return (torch.float32, dtype) if options.token_shift else (torch.float32,)


class Batch(NamedTuple):
    """Which tokens of a batch belong to which sequence, and where its state lies."""

    decodes: int
    """Tokens, and sequences, at the batch's start that go on by one token."""
    tokens: int
    """Those that count; vLLM may pad the batch."""
    decode_slots_S: Tensor | None
    read_slots_S: Tensor | None
    """None while vLLM measures memory, before there are states."""
    read_bounds: Tensor
    """[S + 1] of the sequences that read several tokens, counted from the first of them."""
    read_continues_S: Tensor | None
    """Whether each of these has a state; what lies in another's slot was a finished sequence's."""

    @classmethod
    def now(cls, layer: str, tokens: int, device: torch.device) -> "Batch":
        """What vLLM says of the batch at hand."""
        metadata = get_forward_context().attn_metadata
        if isinstance(metadata, dict):
            metadata = metadata[layer]
        if metadata is None:
            return cls(0, tokens, None, None, torch.tensor([0, tokens], dtype=torch.int32, device=device), None)
        batch: Batch = metadata.batch
        return batch


class ArwkvMetadata(Mamba1AttentionMetadata):  # type: ignore[misc] # vLLM is untyped
    """vLLM's own, which all layers of a group share, and what they make of it once."""

    @functools.cached_property
    def batch(self) -> Batch:
        decodes, reads = self.num_decode_tokens, self.num_prefill_tokens
        return Batch(
            decodes,
            decodes + reads,
            self.state_indices_tensor_d[:, 0].long() if decodes else None,
            self.state_indices_tensor_p.long() if reads else None,
            self.query_start_loc_p,
            self.has_initial_states_p,
        )


class ArwkvMetadataBuilder(BaseMambaAttentionMetadataBuilder[ArwkvMetadata]):  # type: ignore[misc] # vLLM is untyped
    """vLLM's own, which says of each sequence whether it has a state yet."""

    metadata_cls = ArwkvMetadata
    needs_causal_conv1d_metadata = False


class ArwkvBackend(Mamba1AttentionBackend):  # type: ignore[misc] # vLLM is untyped
    """Names the builder for vLLM."""

    @staticmethod
    def get_name() -> str:
        return "ARWKV"

    @staticmethod
    def get_builder_cls() -> type[ArwkvMetadataBuilder]:
        return ArwkvMetadataBuilder


class ServedTimeMix(nn.Module, MambaBase):  # type: ignore[misc] # vLLM is untyped
    """A `TimeMix` whose states vLLM keeps."""

    def __init__(self, mixer: TimeMix, hidden_size: int, vllm_config: Any, prefix: str) -> None:
        super().__init__()
        self.mixer, self.hidden_size, self.prefix = mixer, hidden_size, prefix
        self.dtype: torch.dtype = vllm_config.model_config.dtype
        vllm_config.compilation_config.static_forward_context[prefix] = self
        self.kv_cache: tuple[Tensor, ...] = ()

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        return state_shapes(self.mixer.options, self.hidden_size)

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        return state_dtypes(self.mixer.options, self.dtype)

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        return MambaAttentionBackendEnum.LINEAR

    def get_attn_backend(self) -> type[ArwkvBackend]:
        return ArwkvBackend

    def forward(
        self, x_NC: Tensor, v_first_BTU: Tensor | None, cos_sin_1ND: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Returns (output [N, C], the first mixer's value, for the mixers to come); states are changed in place."""
        batch, mixer = Batch.now(self.prefix, len(x_NC), x_NC.device), self.mixer
        if batch.read_slots_S is None and batch.decode_slots_S is None:
            x_NC = torch.zeros_like(x_NC)  # the measuring run's layers before may have left anything there
        previous_NC = self._previous(x_NC, batch) if mixer.options.token_shift else None
        only_decodes = batch.decodes == len(x_NC) and can_step(x_NC[:, None])
        axis = 1 if only_decodes else 0  # sequences of one token, or one row of all tokens
        inputs = mixer.shifted(x_NC.unsqueeze(axis), None if previous_NC is None else previous_NC.unsqueeze(axis))
        projected = mixer.project(inputs, is_first=v_first_BTU is None)
        if v_first_BTU is None:
            v_first_BTU = projected.v
        if only_decodes:
            cos_sin_N1D = (
                None if cos_sin_1ND is None else (cos_sin_1ND[0].transpose(0, 1), cos_sin_1ND[1].transpose(0, 1))
            )
            y_BTW, _ = mixer.one_token(projected, v_first_BTU, cos_sin_N1D, self.kv_cache[0], batch.decode_slots_S)
        else:
            y_BTW = self._all_tokens(projected, v_first_BTU, cos_sin_1ND, batch, x_NC.dtype)
        return mixer.output(y_BTW.to(x_NC.dtype)).squeeze(axis), v_first_BTU

    def _all_tokens(
        self,
        projected: Projected,
        v_first_1NU: Tensor,
        cos_sin_1ND: tuple[Tensor, Tensor] | None,
        batch: Batch,
        dtype: torch.dtype,
    ) -> Tensor:
        """The output [1, N, W] before its projection."""
        mixer = self.mixer
        r, w, k, v, a, b = recurrence_inputs(
            *(projected.r, projected.k, projected.v, projected.decay, projected.iclr, v_first_1NU),
            projected.value_mix,
            cos_sin_1ND,
            None,
            mixer.removal_scale,
            None if mixer.options.state_balancing else mixer.rate_scale,
            head_dim=mixer.options.head_dim,
            dtype=recurrence_dtype(projected.r.device, dtype),
        )
        y_1NHD = self._recurrence((r, w, k, v, a, b), batch)
        return mixed_output(
            mixer.norm(y_1NHD) if mixer.options.output_norm == "group" else y_1NHD,
            *(r, k, v),
            mixer.bonus if mixer.options.bonus else None,
            projected.gate,
            gate_around_one=mixer.options.gate == "residual",
        )

    def _previous(self, x_NC: Tensor, batch: Batch) -> Tensor:
        """Each token's predecessor's input; keeps every sequence's last one."""
        n = batch.decodes
        decoding_NC = x_NC[:0]
        if batch.decode_slots_S is not None:
            last_inputs = self.kv_cache[1]
            decoding_NC = last_inputs[batch.decode_slots_S]
            last_inputs[batch.decode_slots_S] = x_NC[:n]
            if n == len(x_NC):
                return decoding_NC
        previous_NC = torch.zeros_like(x_NC)
        previous_NC[:n] = decoding_NC
        if batch.tokens > n:
            previous_NC[n + 1 :] = x_NC[n:-1]
            starts_S, ends_S = batch.read_bounds[:-1].long() + n, batch.read_bounds[1:].long() + n
            previous_NC[starts_S] = 0
            if batch.read_slots_S is not None and batch.read_continues_S is not None:
                last_inputs = self.kv_cache[1]
                kept_SC = torch.where(batch.read_continues_S[:, None], last_inputs[batch.read_slots_S], 0)
                previous_NC[starts_S] = kept_SC
                last_inputs[batch.read_slots_S] = x_NC[ends_S - 1]
        return previous_NC

    def _recurrence(self, inputs: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """The recurrence's output [1, N, H, D]; keeps every sequence's state."""
        scale, n = self.mixer.options.output_scale, batch.decodes
        y_1NHD = torch.zeros_like(inputs[3])
        if batch.decode_slots_S is not None:
            r, w, k, v, a, b = (x[0, :n] for x in inputs)
            y_1NHD[0, :n], _ = wkv7_step(r, w, k, v, a, b, self.kv_cache[0], slots=batch.decode_slots_S, scale=scale)
        if batch.tokens > n:
            r, w, k, v, a, b = (x[:, n : batch.tokens] for x in inputs)
            before = None
            if batch.read_slots_S is not None and batch.read_continues_S is not None:
                states = self.kv_cache[0]
                before = torch.where(batch.read_continues_S[:, None, None, None], states[batch.read_slots_S], 0.0)
            y_1NHD[:, n : batch.tokens], after = wkv7(
                *(r, w, k, v, a, b),
                initial_state=before,
                output_final_state=True,
                cu_seqlens=batch.read_bounds,
                scale=scale,
            )
            if batch.read_slots_S is not None and after is not None:
                self.kv_cache[0][batch.read_slots_S] = after
        return y_1NHD
