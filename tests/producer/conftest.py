"""Captures made once for all of the producer's tests."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from producer_captures import MAX_LENGTH, Captures, Reference, run_captures
from tiny_teachers import tiny_teacher_of


@pytest.fixture(scope="session")
def tiny_teacher(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with heads of 32: vLLM's CPU attention has no kernel for heads of 16."""
    from transformers import AutoConfig, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("teacher") / "tiny-qwen2"
    shutil.copytree(tiny_teacher, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(tiny_teacher, num_attention_heads=2, num_key_value_heads=1)
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def quantized_teacher(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with weights of 8 bits (a scale a row) and activations too (a scale a token), as compressed tensors."""
    folder = tmp_path_factory.mktemp("teacher") / "tiny-qwen2-int8"
    shutil.copytree(tiny_teacher, folder)
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if name.endswith("_proj.weight")]:
        scale = weights[name].abs().amax(1, keepdim=True) / 127
        weights |= {name: (weights[name] / scale).round().to(torch.int8), f"{name}_scale": scale}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    eight_bits = {"num_bits": 8, "type": "int", "symmetric": True}
    scheme = {
        "targets": ["Linear"],
        "weights": {**eight_bits, "strategy": "channel", "dynamic": False},
        "input_activations": {**eight_bits, "strategy": "token", "dynamic": True},
    }
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": scheme},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def short_corpus(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of its documents."""
    path = tmp_path_factory.mktemp("corpus") / "short.jsonl"
    path.write_text("".join(tiny_corpus.read_text().splitlines(keepends=True)[:3]))
    return path


@pytest.fixture(scope="session")
def size_at_96(tiny_teacher: Path, tiny_corpus: Path) -> tuple[int, int]:
    """Tokens of the corpus, and its samples of at most 96 of them; another Python has another standard library."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    documents = [json.loads(line)["text"] for line in tiny_corpus.read_text().splitlines()]
    lengths = [len(ids) for ids in tokenizer(documents)["input_ids"]]
    return sum(lengths), sum(-(-length // 96) for length in lengths)


@pytest.fixture(scope="session")
def family_teachers(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Teachers of other families, by model type."""
    folder = tmp_path_factory.mktemp("family-teachers")
    return {name: tiny_teacher_of(name, tiny_teacher, folder / name) for name in ("qwen3_moe", "olmo2")}


@pytest.fixture(scope="session")
def captures(
    python_with_vllm: list[str],
    tiny_teacher: Path,
    quantized_teacher: Path,
    family_teachers: dict[str, Path],
    tiny_corpus: Path,
    short_corpus: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Captures:
    """The tiny teacher over the tiny corpus, in several ways (see the names)."""
    folder = tmp_path_factory.mktemp("captures")

    def asked(out: str, **flags: Any) -> dict[str, Any]:
        defaults = {"teacher": str(tiny_teacher), "data": [str(tiny_corpus)], "max_length": MAX_LENGTH, "top_k": 16}
        return {**defaults, "out": str(folder / out), "hidden_states": "attention", "samples_per_shard": 20, **flags}

    runs = {
        "base": asked("base", log_jsonl=str(folder / "base.jsonl")),
        # Every prompt is cut by the scheduler, requests meet in other steps and orders, and parts hold other samples.
        "chunked": asked("chunked", step_tokens=40, samples_per_shard=7),
        "shuffled": asked("shuffled", step_tokens=56) | {"shuffled": True},
        "first_rank": asked("ranks", rank=0, world_size=2),
        "second_rank": asked("ranks", rank=1, world_size=2),
        "again": asked("base"),
        "part_lost": asked("mended") | {"copy_of": str(folder / "base"), "lost_part": 3},
        "other_top_k": asked("base", top_k=8),
        "boundaries": asked("boundaries", hidden_states="boundaries", logits="adaptive", top_k=64, top_p=0.5),
        "sampled": asked("sampled", hidden_states="none", logits="sampled", samples=20),
        "hybrid": asked("hybrid", hidden_states="none", logits="hybrid", top_k=8, samples=6),
        "stock": asked("stock", hidden_states="none", capture_backend="stock"),
        "other_backend": asked("stock", hidden_states="none"),
        "final": asked("final", hidden_states="final", logits="none"),
        "quantized": asked("quantized", teacher=str(quantized_teacher), dtype="bfloat16"),
        "qwen3_moe": asked("qwen3_moe", teacher=str(family_teachers["qwen3_moe"]), data=[str(short_corpus)]),
        "olmo2": asked(
            "olmo2", teacher=str(family_teachers["olmo2"]), hidden_states="boundaries", data=[str(short_corpus)]
        ),
    }
    made = run_captures(list(runs.values()), python=python_with_vllm)
    return Captures(folder, dict(zip(runs, made, strict=True)))


@pytest.fixture(scope="session")
def reference(tiny_teacher: Path) -> Reference:
    """The tiny teacher in transformers."""
    return Reference(tiny_teacher, vocab_size=500)
