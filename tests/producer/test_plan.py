"""What a capture costs, from config.json alone."""

import json
from pathlib import Path

import pytest

from arwkv_producer.config import PlanConfig
from arwkv_producer.plan import plan

QWEN_0_5B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
}


@pytest.fixture
def half_billion(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(QWEN_0_5B))
    return str(tmp_path)


def test_hidden_states_outweigh_logits(half_billion: str) -> None:
    document = plan(PlanConfig(teacher=half_billion, hidden_states="attention", tokens=10_000_000))
    columns = document["bytes_per_token_by_column"]
    hidden = sum(size for name, size in columns.items() if name.startswith("hidden."))
    assert 24 * 896 <= hidden <= 43_008
    assert 200 <= columns["logits"] <= 300
    assert document["total_bytes"] == pytest.approx(document["bytes_per_token"] * 10_000_000)


@pytest.mark.parametrize(
    ("size", "width", "layers", "attention", "boundaries", "final"),
    [
        ("0.5B", 896, 24, 43e3, 45e3, 1.8e3),
        ("1.5B", 1536, 28, 86e3, 89e3, 3.1e3),
        ("7B", 3584, 28, 201e3, 208e3, 7.2e3),
        ("32B", 5120, 64, 655e3, 666e3, 10.2e3),
        ("72B", 8192, 80, 1311e3, 1327e3, 16.4e3),
    ],
)
def test_bytes_of_real_models(
    tmp_path: Path, size: str, width: int, layers: int, attention: float, boundaries: float, final: float
) -> None:
    """Qwen2.5's own shapes; expected: bf16 before compression, which keeps 1.4 of 2 bytes."""
    config = {**QWEN_0_5B, "hidden_size": width, "num_hidden_layers": layers, "vocab_size": 152_064}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for mode, uncompressed in (("attention", attention), ("boundaries", boundaries), ("final", final)):
        document = plan(PlanConfig(teacher=str(tmp_path), hidden_states=mode, max_length=2048))
        columns = document["bytes_per_token_by_column"]
        hidden = sum(stored for name, stored in columns.items() if name.startswith("hidden."))
        assert hidden == pytest.approx(0.7 * uncompressed, rel=0.02), size
        assert document["extra_device_bytes"] < 8e9
        assert document["shards"] * document["samples_per_shard"] * 2048 >= document["tokens"]


def test_full_hidden_states_of_a_large_corpus_are_advised_against(half_billion: str) -> None:
    few = plan(PlanConfig(teacher=half_billion, hidden_states="attention", tokens=10_000_000))
    many = plan(PlanConfig(teacher=half_billion, hidden_states="attention", tokens=10_000_000_000))
    assert few["advice"] == ""
    assert "--hidden-states none for the rest" in many["advice"]


def test_boundaries_are_one_more_than_layers(half_billion: str) -> None:
    document = plan(PlanConfig(teacher=half_billion, hidden_states="boundaries", logits="none"))
    assert sum(name.startswith("hidden.boundary.") for name in document["bytes_per_token_by_column"]) == 25


def test_extra_memory_is_bounded_by_the_step(half_billion: str) -> None:
    one, two = (plan(PlanConfig(teacher=half_billion, hidden_states="attention", step_tokens=n)) for n in (4096, 8192))
    grown = two["extra_device_bytes"] - one["extra_device_bytes"]
    assert grown == 4096 * (24 * 896 * 2 + 64 * 8 + 12)
    assert one["extra_device_bytes"] < 1 << 30


def test_time_follows_from_a_given_speed(half_billion: str) -> None:
    assert plan(PlanConfig(teacher=half_billion, tokens=3600))["seconds"] is None
    assert plan(PlanConfig(teacher=half_billion, tokens=3600, tokens_per_s=2.0))["seconds"] == 1800


def test_parts_stay_near_their_target(half_billion: str) -> None:
    for mode in ("none", "final", "attention"):
        document = plan(PlanConfig(teacher=half_billion, hidden_states=mode, max_length=2048))
        part_bytes = document["bytes_per_token"] * 2048 * document["samples_per_shard"]
        assert part_bytes <= 1.01 * (256 << 20) or document["samples_per_shard"] == 8
