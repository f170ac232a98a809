"""A quantized teacher whose products a processor gets wrong is refused there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from arwkv_producer.teacher.int8_products import multiplies_int8
from producer_captures import run_captures

EIGHT_BITS = {"num_bits": 8, "type": "int", "symmetric": True}


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ({}, False),
        ({"quant_method": "awq", "bits": 4}, False),
        ({"config_groups": {"group_0": {"weights": EIGHT_BITS, "input_activations": None}}}, False),
        ({"config_groups": {"group_0": {"input_activations": {"num_bits": 8, "type": "float"}}}}, False),
        ({"config_groups": {"group_0": {"weights": EIGHT_BITS, "input_activations": EIGHT_BITS}}}, True),
        ({"global_quant_config": {"input_tensors": {"dtype": "int8"}, "weight": {"dtype": "int8"}}}, True),
    ],
)
def test_quantized_activations_are_told_from_quantized_weights(quantization: dict[str, Any], expected: bool) -> None:
    assert multiplies_int8(quantization) is expected


def test_a_quantized_teacher_is_refused_where_its_products_saturate(
    python_with_vllm: list[str], quantized_teacher: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    asked = {"teacher": str(quantized_teacher), "data": [str(tiny_corpus)], "out": str(tmp_path / "o")}
    (refusal,) = run_captures([{**asked, "max_length": 96}], python=python_with_vllm, ONEDNN_MAX_CPU_ISA="AVX2")
    assert (refusal["error"], refusal["exit_code"]) == ("UsageError", 2)
    assert "this processor has no VNNI instructions" in refusal["message"], json.dumps(refusal)
    assert not list((tmp_path / "o" / "shards").glob("*"))


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="vLLM takes other products on other processors")
def test_a_quantized_teacher_in_fp32_is_refused_where_its_products_take_bf16_alone(
    python_with_vllm: list[str], quantized_teacher: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    asked = {"teacher": str(quantized_teacher), "data": [str(tiny_corpus)], "out": str(tmp_path / "o")}
    (refusal,) = run_captures([{**asked, "max_length": 96}], python=python_with_vllm)
    assert (refusal["error"], refusal["exit_code"]) == ("UsageError", 2)
    assert "use --dtype bfloat16" in refusal["message"], json.dumps(refusal)
