"""The precision of matrix products for teacher, producer, student and evaluation, and a description of the machine.

bf16 if the processor multiplies it natively, else fp32: emulated bf16 is about twenty times slower than fp32.
"""

import os
from typing import Any

import torch

# oneDNN's names for the instruction sets with bf16 products; it stays below ONEDNN_MAX_CPU_ISA (default: ALL).
BF16_SETS = ("AVX512_CORE_BF16", "AVX10_1_512", "AMX", "AVX2_VNNI_2", "ALL", "DEFAULT")


def multiplies_bf16(device: torch.device | str | None = None) -> bool:
    """Whether `device` multiplies bf16 natively; None means the accelerator, or the processor if there is none.

    ONEDNN_MAX_CPU_ISA and ATEN_CPU_CAPABILITY, which limit the processor's instructions, are respected.
    """
    device = torch.device(device) if device is not None else torch.accelerator.current_accelerator()
    if device is not None and device.type != "cpu":
        return bool(device.type == "cuda" and torch.cuda.is_bf16_supported())
    if "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return False
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(native and any(name in limit for name in BF16_SETS))


def compute_dtype(dtype: str = "auto", device: torch.device | str | None = None) -> torch.dtype:
    """The type of matrix products: `dtype` ("bf16" or "fp32") as asked, or with "auto" by the rule above."""
    bf16 = multiplies_bf16(device) if dtype == "auto" else dtype == "bf16"
    return torch.bfloat16 if bf16 else torch.float32


def machine() -> dict[str, Any]:
    """The machine of a measurement: `cores` that this process may use, instruction set `isa`, and `dtype`."""
    accelerator = torch.accelerator.current_accelerator()
    isa = torch.backends.cpu.get_cpu_capability()
    return {
        "cores": len(os.sched_getaffinity(0)),
        "isa": isa + (" with bf16" if multiplies_bf16("cpu") else ""),
        "accelerator": None if accelerator is None else torch.cuda.get_device_name(accelerator),
        "dtype": str(compute_dtype()).removeprefix("torch."),
    }
