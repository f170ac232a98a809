"""What a capture costs, from config.json alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from arwkv_producer import cli
from arwkv_producer.config import PlanConfig
from arwkv_producer.numerics import distribution
from arwkv_producer.numerics.sampling import uniforms
from arwkv_producer.run.output_folder import present_info
from arwkv_producer.run.plan import plan, print_plan
from arwkv_producer.run.sizes import SHARD_BYTES, logits_bytes, stored_bytes
from arwkv_producer.teacher.capture import CaptureSettings
from arwkv_store.commands import command_line
from process_memory import forget_peak, peak_bytes
from producer_captures import Captures
from store_examples import example_dataset_info

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


@pytest.mark.parametrize(("logits", "draws"), [("top-k", 0), ("sampled", 50), ("hybrid", 8)])
def test_extra_memory_is_what_summarizing_takes(
    half_billion: str, monkeypatch: pytest.MonkeyPatch, logits: str, draws: int
) -> None:
    """One chunk of logits on the path that a GPU takes, against the process's own peak."""
    monkeypatch.setattr(distribution, "_compiled", distribution._on_gpu)
    vocabulary = 151_665
    monkeypatch.setattr("arwkv_producer.run.plan.LOGITS_CHUNK_BYTES", 1 << 27)
    settings = CaptureSettings(top_k=64, vocab_size=vocabulary, logits_chunk_bytes=1 << 27)
    rows = settings.logits_rows(vocabulary, on_cpu=False)

    def summarized() -> None:
        numbers = uniforms(torch.zeros(rows, dtype=torch.int64), torch.arange(rows), draws)
        chosen = distribution.Draws(numbers, logits == "hybrid") if draws else None
        distribution.summarize(torch.rand(rows, vocabulary), 64, torch.zeros(rows, dtype=torch.int64), draws=chosen)

    summarized()
    before = forget_peak()
    summarized()
    taken = peak_bytes() - before
    planned = plan(PlanConfig(teacher=half_billion, step_tokens=rows, logits=logits))["extra_device_bytes"]
    assert 0.4 * planned < taken <= 1.05 * planned


def test_time_follows_from_a_given_speed(half_billion: str) -> None:
    assert plan(PlanConfig(teacher=half_billion, tokens=3600))["seconds"] is None
    assert plan(PlanConfig(teacher=half_billion, tokens=3600, tokens_per_s=2.0))["seconds"] == 1800


@pytest.mark.parametrize(
    ("flags", "measured"),
    [
        ({}, 312),
        ({"logits_codec": "compact"}, 172),
        ({"logits": "adaptive"}, 124),
        ({"logits": "adaptive", "logits_codec": "compact"}, 72.6),
        ({"logits": "sampled", "samples": 50}, 25.9),
        ({"logits": "hybrid", "top_k": 16, "samples": 50}, 116),
        ({"logits": "hybrid", "top_k": 16, "samples": 8}, 61.5),
    ],
    ids=str,
)
def test_bytes_of_logits_are_what_was_measured(half_billion: str, flags: dict[str, Any], measured: float) -> None:
    """On the made-up teacher of benchmarks/store.py, with an fp32 head; hybrid's draws are from the tail alone."""
    columns = plan(PlanConfig(teacher=half_billion, **flags))["bytes_per_token_by_column"]
    assert columns["logits"] == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("name", ["base", "boundaries", "sampled", "hybrid", "final"])
def test_the_plan_knows_what_a_capture_stores(captures: Captures, name: str) -> None:
    """But for how many entries a position has: this teacher knows no natural text."""
    dataset = captures.open(name)
    info, tokens = dataset.info, dataset.info.corpus.tokens
    stored = dict.fromkeys(dataset.shards[0].stats.bytes_by_column, 0.0)
    for shard in dataset.shards:
        for column, size_bytes in shard.stats.bytes_by_column.items():
            stored[column] += size_bytes / tokens
    expected = stored_bytes(info.capture, info.teacher.hidden_size, info.vocab_size_padded)
    expected["rows"] += SHARD_BYTES * len(dataset.shards) / tokens
    if info.capture.logits != "none":
        entries = sum(int(dataset[index].logits.counts.sum()) for index in range(len(dataset))) / tokens
        expected["logits"] = logits_bytes(info.capture, entries, info.vocab_size_padded)
    assert expected == pytest.approx(stored, rel=0.15)


def test_thirty_equal_layers_are_one_line(half_billion: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = plan(PlanConfig(teacher=half_billion, hidden_states="attention", tokens=1000))
    print_plan(document)
    lines = capsys.readouterr().out.splitlines()
    (hidden,) = [line for line in lines if "hidden" in line]
    columns = document["bytes_per_token_by_column"]
    together = sum(size for name, size in columns.items() if name.startswith("hidden."))
    assert hidden.split()[:3] == ["hidden.attn", "×", "24"]
    assert hidden.split()[3] == f"{together:,.1f}"
    assert sum("bytes/token" in line for line in lines) == 5, "rows, logits, token_stats, hidden, together"


def test_a_plan_counts_the_text_that_generate_would_read(
    tiny_teacher: Path,
    tiny_corpus: Path,
    size_at_96: tuple[int, int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = str(tmp_path / "tokens")
    words = [
        "--teacher",
        str(tiny_teacher),
        "--data",
        str(tiny_corpus),
        "--out",
        out,
        "--max-length",
        "96",
        "--json",
        "--dry-run",
    ]
    said = []
    for command in ("plan", "generate"):
        with pytest.raises(SystemExit, match="0"):
            command_line.main(
                "producer", "", {"plan": cli.plan, "generate": cli.generate}, [command, *words, "--json", "--dry-run"]
            )
        said.append(json.loads(capsys.readouterr().out))
    planned, dry_run = said
    assert planned == dry_run
    assert planned[out]["tokens"] == size_at_96[0]
    assert not Path(out).exists()


def test_a_part_of_heavy_samples_holds_few(half_billion: str, tmp_path: Path) -> None:
    """32B, all layers: as many samples as ever where they are light, one of 32,768 tokens."""
    config = {**QWEN_0_5B, "hidden_size": 5120, "num_hidden_layers": 64, "max_position_embeddings": 32768}
    (tmp_path / "config.json").write_text(json.dumps(config))

    def planned(**flags: Any) -> dict[str, Any]:
        return plan(PlanConfig(teacher=str(tmp_path), **flags))

    assert planned()["samples_per_shard"] == 485
    assert planned(hidden_states="final")["samples_per_shard"] == 17
    assert planned(hidden_states="attention", layers="0", max_length=4096)["samples_per_shard"] == 8
    assert planned(hidden_states="attention", max_length=2048)["samples_per_shard"] == 2
    long = planned(hidden_states="attention", max_length=32768)
    assert long["samples_per_shard"] == 1
    assert long["host_bytes"] == (2 + 2) * 32768 * (64 * 5120 * 2 + 64 * 8 + 12 + 5)


def test_a_dataset_keeps_the_samples_per_part_it_began_with(tmp_path: Path) -> None:
    assert present_info(str(tmp_path)) is None
    (tmp_path / "dataset.json").write_bytes(example_dataset_info(samples_per_part=8).to_bytes())
    present = present_info(str(tmp_path))
    assert present is not None
    assert present.corpus.samples_per_part == 8


def test_parts_stay_near_their_target(half_billion: str) -> None:
    for mode in ("none", "final", "attention"):
        document = plan(PlanConfig(teacher=half_billion, hidden_states=mode, max_length=2048))
        part_bytes = document["bytes_per_token"] * 2048 * document["samples_per_shard"]
        assert part_bytes <= 1.2 * (256 << 20) or document["samples_per_shard"] == 8
