"""Other architectures, tied heads and tensor parallelism, with the real engine, against transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arwkv_store import Dataset
from producer_captures import MAX_LENGTH, Captures, Reference, run_captures

pytestmark = pytest.mark.slow

SIZES: dict[str, Any] = {
    "vocab_size": 544,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
}
MODELS = ("qwen2-tied", "qwen3", "qwen3-tied", "llama")


@pytest.fixture(scope="module")
def teachers(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folders = {}
    for name in MODELS:
        model_type, _, tied = name.partition("-")
        torch.manual_seed(1)
        config = AutoConfig.for_model(model_type, **SIZES, tie_word_embeddings=bool(tied))
        folders[name] = tmp_path_factory.mktemp("models") / name
        AutoModelForCausalLM.from_config(config).save_pretrained(folders[name])
        AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="module")
def models(teachers: dict[str, Path], tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Captures:
    folder = tmp_path_factory.mktemp("captures-of-models")
    flags = {"data": [str(tiny_corpus)], "max_length": 64, "top_k": 16, "hidden_states": "attention"}
    runs = [{**flags, "teacher": str(path), "out": str(folder / name)} for name, path in teachers.items()]
    return Captures(folder, dict(zip(teachers, run_captures(runs), strict=True)))


@pytest.mark.parametrize("name", MODELS)
def test_model_is_captured_as_transformers_computes_it(models: Captures, teachers: dict[str, Path], name: str) -> None:
    assert "error" not in models.summaries[name], models.summaries[name]
    reference = Reference(teachers[name], vocab_size=500)
    dataset = models.open(name)
    for index in range(0, len(dataset), 25):
        sample = dataset[index]
        assert sample.logits is not None
        full, states = reference.logprobs(sample), reference.hidden(sample)
        values, _ = full.topk(16, dim=-1)
        stored = torch.from_numpy(sample.logits.logprobs.reshape(-1, 16)).double()
        torch.testing.assert_close(stored, values, atol=1e-4, rtol=0)
        for layer in (0, 1):
            state = torch.from_numpy(sample.hidden[f"attn.{layer}"].astype(np.float32))
            torch.testing.assert_close(state, states[f"attn.{layer}"], atol=1e-4, rtol=2**-8)


def test_two_ranks_capture_what_one_does(
    captures: Captures, tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    flags = {"teacher": str(tiny_teacher), "data": [str(tiny_corpus)], "max_length": MAX_LENGTH, "tensor_parallel": 2}
    runs: dict[str, dict[str, Any]] = {
        "base": {"top_k": 16, "hidden_states": "attention"},
        "hybrid": {"logits": "hybrid", "top_k": 8, "samples": 6, "hidden_states": "none"},
    }
    summaries = run_captures([{**flags, **run, "out": str(tmp_path / name)} for name, run in runs.items()])
    assert all("error" not in summary for summary in summaries), summaries
    of_two = Captures(tmp_path, {})
    assert_drawn_alike(captures.open("hybrid"), of_two.open("hybrid"))
    one, two = captures.open("base"), of_two.open("base")
    for index in range(len(one)):
        a, b = one[index], two[index]
        assert a.logits is not None
        assert b.logits is not None
        np.testing.assert_allclose(a.logits.logprobs, b.logits.logprobs, atol=1e-4)
        np.testing.assert_allclose(a.logits.tail_logprob, b.logits.tail_logprob, atol=1e-4)
        np.testing.assert_allclose(a.true_logprob, b.true_logprob, atol=1e-4)
        for name, state in a.hidden.items():
            np.testing.assert_allclose(
                state.astype(np.float32), b.hidden[name].astype(np.float32), atol=1e-4, rtol=2**-7
            )


def assert_drawn_alike(one: Dataset, two: Dataset) -> None:
    """The same tokens, but where rounding moved a number from one to another."""
    differing = total = 0
    for index in range(len(one)):
        a, b = one[index].logits, two[index].logits
        assert a is not None
        assert b is not None
        positions = [np.repeat(np.arange(len(logits.counts)), logits.counts) for logits in (a, b)]
        drawn = [set(zip(at, logits.ids, strict=True)) for at, logits in zip(positions, (a, b), strict=True)]
        differing += len(drawn[0] ^ drawn[1])
        total += len(drawn[0])
    assert differing < 1e-3 * total
