"""Products of 8-bit integers: which quantized teachers need them, and whether this processor computes them exactly.

On a processor without VNNI instructions, oneDNN adds pairs of products in 16 bits, which saturate. There a captured
log-probability was off by up to 2 nats; with VNNI the same teacher's were those of exact arithmetic.
"""

from collections.abc import Iterator, Mapping
from typing import Any

ACTIVATIONS = ("input_activations", "input_tensors")
"""Where quantization_config says how activations are quantized: compressed tensors, Quark."""


def multiplies_int8(quantization: Mapping[str, Any]) -> bool:
    """Whether a layer of a teacher quantized like this multiplies 8-bit activations by 8-bit weights."""
    return any(
        asked.get("dtype") == "int8" or (asked.get("type") == "int" and asked.get("num_bits") == 8)
        for asked in _activations(quantization)
    )


def _activations(document: Any) -> Iterator[Mapping[str, Any]]:
    for name, value in document.items() if isinstance(document, Mapping) else ():
        if name in ACTIVATIONS and isinstance(value, Mapping):
            yield value
        yield from _activations(value)


def int8_products_need_bf16() -> bool:
    """Whether vLLM takes its kernel for AMX tiles, which refuses fp32 activations (its message names no way out)."""
    import torch

    return torch.cpu._is_amx_tile_supported()  # what vLLM itself asks


def int8_products_are_exact() -> bool:
    """Whether vLLM's 8-bit product on this processor gives the largest product of 64 columns exactly."""
    import torch
    from vllm import _custom_ops

    weight_KN, scale_N1 = torch.full((32, 64), 127, dtype=torch.int8).T, torch.ones(32, 1)
    sums_N = weight_KN.sum(0, keepdim=True, dtype=torch.float32)
    product = _custom_ops.create_onednn_scaled_mm(weight_KN, scale_N1, torch.float32, True, False)
    rows, scales, zeros = _custom_ops.onednn_scaled_int8_quant(torch.full((1, 64), 127.0))
    found = _custom_ops.onednn_scaled_mm(product, rows, torch.zeros(1, 32), scales, zeros, sums_N, None)
    return bool((found == 64 * 127 * 127).all())
