"""A student's weights under the names and in the shapes of llama.cpp's `arwkv7` architecture.

Its graph is fixed: RMSNorm, token shift with five or six mixtures, RWKV-7 with its bonus, optional group norm and gate,
and Qwen2's MLP. A part that a student lacks becomes a weight that does nothing.

Shape legend: C model width, H receptance heads, G key-value heads, D head size, W = H·D, U = G·D, R a low rank.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from arwkv_student.model.configuration import ArwkvConfig
from arwkv_student.model.time_mix_options import TimeMixOptions

NEVER = -100.0
"""σ(−100) is 0 in fp32."""
RANK_BLOCK = 32
"""A gate's rank is padded to a multiple of it, so that its matrices could be quantized."""

Read = Callable[[str], Tensor]
"""The student's tensor of a name, in fp32."""


def gate_rank(options: TimeMixOptions) -> int:
    """The rank of the gate in the file; 0 without a gate. The 1 of a `residual` gate takes one more."""
    if options.gate == "none":
        return 0
    if options.gate == "low-rank":
        return options.gate_rank
    return -(-(options.gate_rank + 1) // RANK_BLOCK) * RANK_BLOCK


def gguf_tensors(config: ArwkvConfig, read: Read) -> Iterator[tuple[str, Tensor]]:
    """(name in the file, fp32 tensor), one after another, for a student that has no `obstacles`."""
    yield "token_embd.weight", read("model.embed_tokens.weight")
    yield "output_norm.weight", read("model.norm.weight")
    # Also where it is tied to the embedding, which arwkv7 does not fall back to.
    yield "output.weight", read("model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight")
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"model.layers.{layer}.", f"blk.{layer}."
        yield theirs + "attn_norm.weight", read(ours + "input_layernorm.weight")
        yield theirs + "ffn_norm.weight", read(ours + "post_attention_layernorm.weight")
        for part in ("gate", "up", "down"):
            yield f"{theirs}ffn_{part}.weight", read(f"{ours}mlp.{part}_proj.weight")
        mixer = _TimeMixer(config, layer, read)
        for name, tensor in mixer.tensors():
            yield f"{theirs}time_mix_{name}", tensor


class _TimeMixer:
    """One time mixer's tensors, widened to C channels and one key-value head for each receptance head."""

    def __init__(self, config: ArwkvConfig, layer: int, read: Read) -> None:
        self.options, self.layer, self.C = config.time_mix_options, layer, config.hidden_size
        self._read_any = read

    def read(self, name: str) -> Tensor:
        """The mixer's tensor of a name."""
        return self._read_any(f"model.layers.{self.layer}.time_mix.{name}")

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        options, read = self.options, self.read
        yield "receptance.weight", self._widened(read("receptance.weight"))
        yield "key.weight", self._repeated(read("key.weight"))
        yield "value.weight", self._repeated(read("value.weight"))
        yield "output.weight", self._widened(read("output.weight").T).T
        for letter, name in (("w", "decay"), ("a", "rate")):
            yield f"{letter}0.weight", self._widened(read(f"{name}.bias"))
            yield f"{letter}1.weight", read(f"{name}.down.weight")
            yield f"{letter}2.weight", self._widened(read(f"{name}.up.weight"))
        yield from self._value_residual()
        if options.gate != "none":
            down_RC, up_CR = self._gate()
            yield "g1.weight", down_RC
            yield "g2.weight", up_CR
        # llama.cpp's graph repeats the input five times without a gate, and six with one.
        mixtures = 5 if options.gate == "none" else 6
        shift = read("shift_mix")[:mixtures] if options.token_shift else torch.zeros(mixtures, self.C)
        yield "lerp_fused.weight", shift.reshape(mixtures, 1, 1, self.C)
        yield "k_k.weight", self._widened(read("removal_scale"))
        yield "k_a.weight", self._widened(read("rate_scale"))
        yield "r_k.weight", self._widened(read("bonus").flatten()) if options.bonus else torch.zeros(self.C)
        if options.output_norm == "group":
            yield "ln.weight", self._widened(read("norm.weight"))
            yield "ln.bias", self._widened(read("norm.bias"))

    def _value_residual(self) -> Iterator[tuple[str, Tensor]]:
        """v0 + v1·v2, the logit of how much of layer 0's value is mixed in. Layer 0's own is loaded and never read."""
        options = self.options
        if self.layer > 0 and options.value_residual != "none":
            yield "v0.weight", self._repeated(self.read("value_mix.bias"))
            yield "v1.weight", self.read("value_mix.down.weight")
            yield "v2.weight", self._repeated(self.read("value_mix.up.weight"))
            return
        rank = options.rate_rank if self.layer == 0 else options.value_rank
        yield "v0.weight", torch.full((self.C,), NEVER)
        yield "v1.weight", torch.zeros(rank, self.C)
        yield "v2.weight", torch.zeros(self.C, rank)

    def _gate(self) -> tuple[Tensor, Tensor]:
        """The gate's two matrices. 1 + σ(x g1) g2 is σ(x g1′) g2′ with one more rank: σ(0)·2 = 1."""
        down, up = self.read("gate.down.weight"), self._widened(self.read("gate.up.weight"))
        if self.options.gate == "low-rank":
            return down, up
        own, rank = len(down), gate_rank(self.options)
        down_RC, up_CR = down.new_zeros(rank, self.C), up.new_zeros(self.C, rank)
        down_RC[:own], up_CR[:, :own] = down, up
        up_CR[:, own] = 2.0
        return down_RC, up_CR

    def _widened(self, weight: Tensor) -> Tensor:
        """W rows as C: zeros where a full-width mixer would have more heads."""
        missing = weight.new_zeros(self.C - self.options.width, *weight.shape[1:])
        return torch.cat([weight, missing])

    def _repeated(self, weight: Tensor) -> Tensor:
        """U rows as C: each key-value head once for every receptance head that it serves."""
        heads = weight.reshape(self.options.num_key_value_heads, self.options.head_dim, *weight.shape[1:])
        repeats = self.options.num_heads // self.options.num_key_value_heads
        return self._widened(heads.repeat_interleave(repeats, dim=0).flatten(0, 1))
