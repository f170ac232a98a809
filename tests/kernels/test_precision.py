"""bf16 where a device multiplies it natively, else fp32; on a processor that may use this instruction set or that."""

import json
import os
import subprocess
import sys

import pytest
import torch

from arwkv_kernels.precision import compute_dtype, machine, multiplies_bf16

NO_AVX512 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


@pytest.fixture
def with_avx512(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A processor with AVX-512 and bf16 products, without AMX; nothing in the environment limits it."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    return monkeypatch


def on_a_card(monkeypatch: pytest.MonkeyPatch, device: str, bf16: bool) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(device))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")


def test_a_processor_without_avx512_multiplies_in_fp32() -> None:
    """A processor that is held to AVX2 from the start, in a process of its own."""
    code = (
        "import json; from arwkv_kernels.precision import compute_dtype, machine\n"
        "print(json.dumps([str(compute_dtype('auto', 'cpu')), machine()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | NO_AVX512, capture_output=True, text=True, check=True
    )
    dtype, said = json.loads(done.stdout)
    assert dtype == "torch.float32"
    assert said["isa"] == "AVX2"
    assert said["cores"] == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("bf16", "amx", "native"), [(True, False, True), (False, True, True), (False, False, False)])
def test_avx512_alone_is_not_enough(with_avx512: pytest.MonkeyPatch, bf16: bool, amx: bool, native: bool) -> None:
    with_avx512.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    with_avx512.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert multiplies_bf16("cpu") is native


@pytest.mark.parametrize(
    ("limit", "native"),
    [
        *((limit, True) for limit in ("ALL", "default", "AVX512_CORE_BF16", "avx512_core_amx", "AVX10_1_512")),
        *((limit, False) for limit in ("SSE41", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")),
    ],
)
def test_a_limit_on_onednn_is_obeyed(with_avx512: pytest.MonkeyPatch, limit: str, native: bool) -> None:
    with_avx512.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert multiplies_bf16("cpu") is native


def test_a_processor_below_avx512_is_not_asked_further(with_avx512: pytest.MonkeyPatch) -> None:
    with_avx512.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not multiplies_bf16("cpu")


@pytest.mark.parametrize(
    ("device", "bf16", "native"), [("cuda", True, True), ("cuda", False, False), ("mps", True, False)]
)
def test_an_accelerator_decides_unless_the_processor_is_asked_about(
    with_avx512: pytest.MonkeyPatch, device: str, bf16: bool, native: bool
) -> None:
    on_a_card(with_avx512, device, bf16)
    assert multiplies_bf16() is native
    assert multiplies_bf16(torch.device(device)) is native
    assert multiplies_bf16("cpu")


def test_what_is_asked_for_wins_over_the_rule(with_avx512: pytest.MonkeyPatch) -> None:
    assert compute_dtype("auto", "cpu") == compute_dtype("bf16", "cpu") == torch.bfloat16
    assert compute_dtype("fp32", "cpu") == torch.float32
    with_avx512.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert compute_dtype("auto", "cpu") == torch.float32
    assert compute_dtype("bf16", "cpu") == torch.bfloat16


def test_a_machine_says_what_its_figures_were_measured_on(with_avx512: pytest.MonkeyPatch) -> None:
    with_avx512.setattr(torch.accelerator, "current_accelerator", lambda: None)
    assert machine() | {"cores": 0} == {"cores": 0, "isa": "AVX512 with bf16", "accelerator": None, "dtype": "bfloat16"}
    on_a_card(with_avx512, "cuda", False)
    assert machine()["accelerator"] == "a card"
    assert machine()["dtype"] == "float32"
