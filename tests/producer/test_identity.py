"""What a dataset is known by: the teacher's files, its configuration, and the flags wherever they came from."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from arwkv_kernels.precision import multiplies_bf16
from arwkv_producer.config import GenerateConfig
from arwkv_producer.run.identity import recorded_command, teacher_dtype
from arwkv_producer.run.job import prepare
from arwkv_producer.teacher.teacher import Teacher, find_teacher, weights_hash
from arwkv_store import create_dataset

CONFIG = {"architectures": ["Qwen2ForCausalLM"], "hidden_size": 8, "rope_theta": 1e6, "transformers_version": "5"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def hashed(folder: Path, present: str | None = None, **changes: Any) -> str:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    digest = weights_hash(find_teacher(str(folder)), present)
    assert digest is not None
    return digest


def test_the_teachers_hash_covers_weights_and_configuration(folder: Path) -> None:
    before = hashed(folder)
    assert hashed(folder, rope_theta=1e4) != before
    assert hashed(folder, transformers_version="6") == before
    (folder / "model.safetensors").write_bytes(b"others")
    assert hashed(folder) != before


def test_a_dataset_begun_when_only_weights_were_hashed_goes_on(
    tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    config = GenerateConfig(teacher=str(tiny_teacher), data=(str(tiny_corpus),), out=str(tmp_path / "o"), max_length=96)
    (job,) = prepare(config)
    weights, _, configuration = (job.info.teacher.weights_hash or "").partition("-")
    assert configuration
    older = job.info.model_copy(update={"teacher": job.info.teacher.model_copy(update={"weights_hash": weights})})
    create_dataset(config.out, older)
    (again,) = prepare(config)
    create_dataset(config.out, again.info)


def test_the_command_holds_every_flag_that_decides_wherever_it_came_from() -> None:
    config = GenerateConfig(
        teacher="m", data=("a b.jsonl", "c"), out="o", chat=True, held_out=0.1, rank=1, world_size=2, log_jsonl="l"
    )
    named = GenerateConfig(teacher="m", data=("caf\udce9",), out="o")
    assert recorded_command(named).encode().decode().endswith("--data 'caf\ufffd'")
    assert recorded_command(config) == "producer generate --teacher m --data 'a b.jsonl' c --chat --held-out 0.1"


@pytest.mark.parametrize(
    ("quantization", "head"), [(None, "float32"), ({"quant_method": "awq"}, "float32"), ({"lm_head": True}, "model")]
)
def test_a_quantized_head_stays_in_the_models_arithmetic(quantization: dict[str, Any] | None, head: str) -> None:
    config = {**CONFIG, "quantization_config": quantization}
    assert Teacher("m", "m", None, config, "Qwen2ForCausalLM").head_dtype == head


NATIVE = "bfloat16" if multiplies_bf16() else "float32"


@pytest.mark.parametrize(
    ("checkpoint", "flags", "limit", "expected"),
    [
        ("bfloat16", {}, "ALL", NATIVE),
        ("bfloat16", {}, "AVX2", "float32"),
        ("bfloat16", {"ray": "auto"}, "AVX2", "bfloat16"),
        ("bfloat16", {"dtype": "bfloat16"}, "AVX2", "bfloat16"),
        ("float16", {}, "AVX2", "float16"),
        ("float32", {}, "ALL", "float32"),
    ],
)
@pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator computes, whatever the processor may do")
def test_a_bf16_checkpoint_runs_in_bf16_only_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, checkpoint: str, flags: dict[str, Any], limit: str, expected: str
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    config = GenerateConfig(teacher="m", data=("d",), out="o", **flags)
    teacher = Teacher("m", "m", None, {**CONFIG, "torch_dtype": checkpoint}, "Qwen2ForCausalLM")
    assert teacher_dtype(config, teacher) == expected


def test_a_dataset_goes_on_in_the_arithmetic_it_began_with(
    tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    config = GenerateConfig(teacher=str(tiny_teacher), data=(str(tiny_corpus),), out=str(tmp_path / "o"), max_length=96)
    (job,) = prepare(config)
    elsewhere = job.info.teacher.model_copy(update={"dtype": "bfloat16"})
    create_dataset(config.out, job.info.model_copy(update={"teacher": elsewhere}))
    (again,) = prepare(config)
    assert again.info.teacher.dtype == "bfloat16"
