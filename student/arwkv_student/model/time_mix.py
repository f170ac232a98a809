"""RWKV-7 time mixing: the module that replaces an attention block.

Shape legend: B batch, T time, C model width, H receptance heads, G key-value heads, D head size, W = H·D, U = G·D.
Formulas: arXiv 2503.14456 (RWKV-7), 2501.15570 (ARWKV), 2505.03005 (RADLADS, for some options).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from arwkv_kernels import wkv7, wkv7_step
from arwkv_student.model.cpu_step import can_step, step
from arwkv_student.model.elementwise import fused, mixed_output, recurrence_inputs, shifted
from arwkv_student.model.initial_values import decay_bias, iclr_bias, shift_mixes
from arwkv_student.model.low_rank import LowRank
from arwkv_student.model.time_mix_options import TimeMixOptions

GROUP_NORM_EPS = 64e-5


class TimeMixState(NamedTuple):
    """The state after a token, per sequence: everything that later tokens need."""

    last_input_BC: Tensor
    """The last token's input, for the token shift."""
    wkv_BHDD: Tensor
    """The recurrent state, fp32, key side before value side."""


class TimeMixContext(NamedTuple):
    """Shared by all layers of one forward pass."""

    cos_sin_BTD: tuple[Tensor, Tensor] | None = None
    """Rotary embedding of the positions; needed for rope."""
    mask_BT1: Tensor | None = None
    """1 for tokens, 0 for padding, which does not change a state; None: no padding before a token."""
    cu_seqlens: Tensor | None = None
    """Bounds [n + 1] of documents packed along T (with B = 1). Documents do not affect each other."""

    @property
    def is_plain(self) -> bool:
        """Neither padding nor packing."""
        return self.mask_BT1 is None and self.cu_seqlens is None


class Projected(NamedTuple):
    """Outputs of the projections, [B, T, …]; `decay` and the fields after it are before their nonlinearity."""

    r: Tensor
    k: Tensor
    v: Tensor
    decay: Tensor
    iclr: Tensor
    """The in-context learning rate, a."""
    value_mix: Tensor | None
    gate: Tensor | None


class HeadNorm(nn.GroupNorm):
    """Each head's output [B, T, H, D] normalized separately, in fp32 for weights of any precision."""

    def forward(self, y_BTHD: Tensor) -> Tensor:
        """[B, T, H, D] in fp32."""
        rows_NW = y_BTHD.float().flatten(0, 1).flatten(1)
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(rows_NW, self.num_groups, weight, bias, self.eps).view(y_BTHD.shape)


class ProjectionNorm(nn.RMSNorm):
    """A projection [B, T, U], each range of its width normalized separately, in fp32."""

    def forward(self, y_BTU: Tensor) -> Tensor:
        """[B, T, U] in fp32."""
        heads = y_BTU.float().view(*y_BTU.shape[:-1], -1, self.weight.shape[0])
        return F.rms_norm(heads, self.normalized_shape, self.weight.float(), self.eps).flatten(-2)


class TimeMix(nn.Module):
    """One time mixer. `forward` takes the normed input of the layer, as an attention block does."""

    def __init__(
        self,
        options: TimeMixOptions,
        hidden_size: int,
        layer: int,
        num_layers: int,
        *,
        is_first: bool = False,
        norm_eps: float = 1e-6,
    ) -> None:
        """`is_first`: no earlier layer mixes time, so later layers mix in this one's value.

        `norm_eps`: of `qk_norm`.
        """
        super().__init__()
        self.options, self.layer, self.num_layers = options, layer, num_layers
        self.fuse = False
        """Whether torch.compile makes one kernel of each element-wise part."""
        C, W, U = hidden_size, options.width, options.key_value_width
        self.receptance = nn.Linear(C, W, bias=options.qkv_bias)
        self.key = nn.Linear(C, U, bias=options.qkv_bias)
        self.value = nn.Linear(C, U, bias=options.qkv_bias)
        self.output = nn.Linear(W, C, bias=False)
        self.decay = LowRank(C, options.decay_rank, W, activation="tanh")
        self.rate = LowRank(C, options.rate_rank, W, activation="none")
        self.removal_scale = nn.Parameter(torch.ones(W))
        if not options.state_balancing:
            self.rate_scale = nn.Parameter(torch.ones(W))
        if options.qk_norm != "none":
            D, whole = options.head_dim, options.qk_norm == "width"
            self.receptance_norm = ProjectionNorm(W if whole else D, eps=norm_eps)
            self.key_norm = ProjectionNorm(U if whole else D, eps=norm_eps)
        if options.value_residual != "none" and not is_first:
            self.value_mix = LowRank(C, options.value_rank, U, activation="none")
        if options.gate != "none":
            self.gate = LowRank(C, options.gate_rank, W, activation="sigmoid", bias=False)
        if options.token_shift:
            self.shift_mix = nn.Parameter(torch.zeros(6, C))
        if options.bonus:
            self.bonus = nn.Parameter(torch.zeros(options.num_heads, options.head_dim))
        if options.output_norm == "group":
            self.norm = HeadNorm(options.num_heads, W, eps=GROUP_NORM_EPS)

    def forward(
        self, x_BTC: Tensor, v_first_BTU: Tensor | None, context: TimeMixContext, state: TimeMixState | None = None
    ) -> tuple[Tensor, Tensor, TimeMixState | None]:
        """Returns (output [B, T, C], the first mixer's value [B, T, U], state after the last token if one was given).

        `v_first_BTU` is the first mixer's value (None in that mixer), never changed in place.
        """
        if torch.is_autocast_enabled(x_BTC.device.type):
            # The projections read bf16 anyway; one cast before the six mixtures halves their memory traffic.
            x_BTC = x_BTC.to(torch.get_autocast_dtype(x_BTC.device.type))
        if context.mask_BT1 is not None:
            x_BTC = x_BTC * context.mask_BT1.to(x_BTC.dtype)
        projected = self.project(self._inputs(x_BTC, context, state), is_first=v_first_BTU is None)
        if v_first_BTU is None:
            v_first_BTU = projected.v.detach() if self.options.value_residual == "detached" else projected.v
        wkv: Tensor | None
        # An offloaded norm gets its weights when it is called, which the compiled step does not do.
        norm_is_here = self.options.output_norm == "none" or not self.norm.weight.is_meta
        if state is not None and context.is_plain and norm_is_here and can_step(x_BTC):
            y, wkv = self.one_token(projected, v_first_BTU, context.cos_sin_BTD, state.wkv_BHDD)
        else:
            y, wkv = self._all_tokens(projected, v_first_BTU, context, state, x_BTC.dtype)
        after = None
        if state is not None:
            assert wkv is not None, "a recurrence that was given a state returned none"
            after = TimeMixState(_last_input(x_BTC, state, context), wkv)
        return self.output(y.to(x_BTC.dtype)), v_first_BTU, after

    def _inputs(self, x_BTC: Tensor, context: TimeMixContext, state: TimeMixState | None) -> tuple[Tensor, ...]:
        if not self.options.token_shift:
            return self.shifted(x_BTC, None)
        first_B1C = torch.zeros_like(x_BTC[:, :1]) if state is None else state.last_input_BC[:, None].to(x_BTC.dtype)
        previous = torch.cat([first_B1C, x_BTC[:, :-1]], dim=1) if x_BTC.shape[1] > 1 else first_B1C
        if context.cu_seqlens is not None:
            previous[:, context.cu_seqlens[1:-1].long()] = 0.0
        return self.shifted(x_BTC, previous)

    def shifted(self, x_BTC: Tensor, previous_BTC: Tensor | None) -> tuple[Tensor, ...]:
        """The inputs [B, T, C] for r, w, k, v, a, g: shifted, or without token shift (and so x₋₁) x itself."""
        return (x_BTC,) * 6 if previous_BTC is None else self._run(shifted, x_BTC, previous_BTC, self.shift_mix)

    def project(self, inputs: tuple[Tensor, ...], *, is_first: bool) -> Projected:
        """What the recurrence and the gate need of the six inputs [B, T, C]. `is_first`: of the first mixer."""
        x_r, x_w, x_k, x_v, x_a, x_g = inputs
        return Projected(
            r=self._normed("receptance", self.receptance(x_r)),
            k=self._normed("key", self.key(x_k)),
            v=self.value(x_v),
            decay=self.decay(x_w),
            iclr=self.rate(x_a),
            value_mix=None if is_first or self.options.value_residual == "none" else self.value_mix(x_v),
            gate=None if self.options.gate == "none" else self.gate(x_g),
        )

    def _normed(self, projection: str, y_BTU: Tensor) -> Tensor:
        if self.options.qk_norm == "none":
            return y_BTU
        normed: Tensor = getattr(self, f"{projection}_norm")(y_BTU)
        return normed

    def _all_tokens(
        self,
        projected: Projected,
        v_first_BTU: Tensor,
        context: TimeMixContext,
        state: TimeMixState | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor | None]:
        """The output [B, T, W] before its projection, and the state after the last token if one was given."""
        options = self.options
        inputs = self._run(
            recurrence_inputs,
            *(projected.r, projected.k, projected.v, projected.decay, projected.iclr, v_first_BTU, projected.value_mix),
            context.cos_sin_BTD if options.rope else None,
            context.mask_BT1,
            self.removal_scale,
            None if options.state_balancing else self.rate_scale,
            head_dim=options.head_dim,
            dtype=recurrence_dtype(projected.r.device, dtype),
        )
        y_BTHD, wkv = self._recurrence(inputs, context.cu_seqlens, state)
        r, _, k, v, _, _ = inputs
        y_BTW = self._run(
            mixed_output,
            *(self.norm(y_BTHD) if options.output_norm == "group" else y_BTHD, r, k, v),
            self.bonus if options.bonus else None,
            projected.gate,
            gate_around_one=options.gate == "residual",
        )
        return y_BTW, wkv

    def _recurrence(
        self, inputs: tuple[Tensor, ...], cu_seqlens: Tensor | None, state: TimeMixState | None
    ) -> tuple[Tensor, Tensor | None]:
        """The recurrence over [B, T, H, D]; a single token of decoding takes a shorter path."""
        r, w, k, v, a, b = inputs
        scale = self.options.output_scale
        if state is not None and r.shape[1] == 1 and cu_seqlens is None:
            r, w, k, v, a, b = (x.squeeze(1) for x in inputs)
            y_BHD, wkv = wkv7_step(r, w, k, v, a, b, state.wkv_BHDD, scale=scale)
            return y_BHD[:, None], wkv
        return wkv7(
            *(r, w, k, v, a, b),
            initial_state=None if state is None else state.wkv_BHDD,
            output_final_state=state is not None,
            cu_seqlens=cu_seqlens,
            scale=scale,
        )

    def one_token(
        self,
        projected: Projected,
        v_first_B1U: Tensor,
        cos_sin_B1D: tuple[Tensor, Tensor] | None,
        wkv_BHDD: Tensor,
        slots_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The same for one token on a CPU, in one compiled loop. `slots_B`: see `step`."""
        options = self.options
        y_BW, wkv = step(
            *(projected.r[:, 0], projected.k[:, 0], projected.v[:, 0]),
            *(projected.decay[:, 0], projected.iclr[:, 0]),
            None if projected.value_mix is None else projected.value_mix[:, 0],
            None if projected.gate is None else projected.gate[:, 0],
            v_first_BU=v_first_B1U[:, 0],
            cos_sin_BD=_rows(cos_sin_B1D, len(v_first_B1U)) if options.rope else None,
            removal_scale_W=self.removal_scale,
            iclr_scale_W=None if options.state_balancing else self.rate_scale,
            bonus_HD=self.bonus if options.bonus else None,
            norm=self.norm if options.output_norm == "group" else None,
            wkv_BHDD=wkv_BHDD,
            slots_B=slots_B,
            scale=options.output_scale,
            gate_around_one=options.gate == "residual",
        )
        return y_BW[:, None], wkv

    def _run(self, part: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return (fused(part) if self.fuse else part)(*arguments, **options)

    @torch.no_grad()
    def initialize(self) -> None:
        """RWKV-7's initial values of a new mixer: slow and fast channels, an output of zeros.

        Uses `transformers.initialization`, which does not change weights that were loaded from a file.
        """
        options, depth, C = self.options, self.layer / max(self.num_layers - 1, 1), self.receptance.in_features
        for linear, bound in ((self.receptance, 0.5), (self.key, 0.05), (self.value, 0.5)):
            init.uniform_(linear.weight, -bound / math.sqrt(C), bound / math.sqrt(C))
            if linear.bias is not None:
                init.zeros_(linear.bias)
        init.zeros_(self.output.weight)
        self.decay.initialize(decay_bias(options.width, depth))
        self.rate.initialize(iclr_bias(options.width))
        init.constant_(self.removal_scale, 1.0 if options.state_balancing else 0.7)
        if not options.state_balancing:
            init.constant_(self.rate_scale, 1.02)
        if options.qk_norm != "none":
            init.ones_(self.receptance_norm.weight)
            init.ones_(self.key_norm.weight)
        if hasattr(self, "value_mix"):
            self.value_mix.initialize(torch.full((options.key_value_width,), 0.73))
        if options.gate != "none":
            init.normal_(self.gate.down.weight, std=0.02)
            # `residual` starts as the identity; `low-rank` as a near constant: σ(0) = ½ summed over the rank is 1.
            init.constant_(self.gate.up.weight, 0.0 if options.gate == "residual" else 2.0 / options.gate_rank)
        if options.token_shift:
            init.copy_(self.shift_mix, shift_mixes(C, self.layer / self.num_layers))
        if options.bonus:
            init.constant_(self.bonus, -0.04)
        if options.output_norm == "group":
            init.ones_(self.norm.weight)
            init.zeros_(self.norm.bias)


def recurrence_dtype(device: torch.device, compute_dtype: torch.dtype) -> torch.dtype:
    """The dtype of the recurrence's inputs, except its log decay: on a GPU the compute dtype, else fp32.

    The GPU's chunk kernels take only half precision. The CPU's paths compute in fp32, so rounding first gains nothing.
    """
    in_half = device.type == "cuda" and compute_dtype in (torch.bfloat16, torch.float16)
    return compute_dtype if in_half else torch.float32


def _rows(cos_sin_B1D: tuple[Tensor, Tensor] | None, batch: int) -> tuple[Tensor, Tensor]:
    """[B, D] of a rotary embedding [B or 1, 1, D]."""
    assert cos_sin_B1D is not None, "a mixer with rope was given no positions"
    cos_B1D, sin_B1D = cos_sin_B1D
    return cos_B1D[:, 0].float().expand(batch, -1), sin_B1D[:, 0].float().expand(batch, -1)


def _last_input(x_BTC: Tensor, before: TimeMixState, context: TimeMixContext) -> Tensor:
    """Each sequence's last input that is a token; if all is padding, the one before this call."""
    if context.mask_BT1 is None:
        return x_BTC[:, -1]
    mask_BT = context.mask_BT1[..., 0] > 0
    positions_T = torch.arange(1, mask_BT.shape[1] + 1, device=mask_BT.device)
    last_B = (mask_BT * positions_T).amax(dim=1)
    last_BC = x_BTC[torch.arange(len(last_B), device=last_B.device), (last_B - 1).clamp_min(0)]
    return torch.where(last_B[:, None] > 0, last_BC, before.last_input_BC.to(x_BTC.dtype))
