"""`producer verify` passes what was captured and names each of the usual mistakes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from arwkv_producer.config import VerifyConfig
from arwkv_producer.verify import verify
from arwkv_store import DatasetInfo, Sample, create_dataset
from arwkv_store.errors import CorruptShard
from producer_captures import Captures, Reference


def spoiled(
    captures: Captures,
    out: Path,
    sample: Callable[[Sample], Sample] = lambda sample: sample,
    info: Callable[[DatasetInfo], DatasetInfo] = lambda info: info,
) -> str:
    """A dataset of the base capture's first part, every sample (and the identity) changed."""
    base = captures.open("base")
    per_part = base.info.corpus.samples_per_part
    corpus = base.info.corpus.model_copy(update={"parts": 1, "samples": per_part})
    writer = create_dataset(str(out), info(base.info.model_copy(update={"corpus": corpus})))
    writer.write_shard(0, [sample(base[index]) for index in range(per_part)])
    return str(out)


def expect(message: str, shards: str, teacher: Path, **flags: str) -> None:
    with pytest.raises(CorruptShard, match=message):
        verify(VerifyConfig(shards=shards, teacher=str(teacher), samples=5, **flags))


@pytest.mark.parametrize("name", ["base", "boundaries", "final"])
def test_what_was_captured_fits(captures: Captures, tiny_teacher: Path, name: str) -> None:
    document = verify(VerifyConfig(shards=str(captures.folder / name), teacher=str(tiny_teacher), samples=4))
    assert document["samples"] == 4
    assert all(difference < 0.01 for difference in document["largest_differences"].values())


def test_shift_by_one_token_is_named(captures: Captures, tiny_teacher: Path, tmp_path: Path) -> None:
    def shift(sample: Sample) -> Sample:
        return dataclasses.replace(sample, true_logprob=np.roll(sample.true_logprob, 1))

    expect("positions are shifted by one", spoiled(captures, tmp_path / "d", shift), tiny_teacher)


def test_padded_vocabulary_is_named(
    captures: Captures, reference: Reference, tiny_teacher: Path, tmp_path: Path
) -> None:
    padded = Reference(tiny_teacher, vocab_size=544)

    def over_padding(sample: Sample) -> Sample:
        full = padded.logprobs(sample).numpy()
        true = full[np.arange(len(sample.tokens) - 1), sample.tokens[1:]].astype(np.float32)
        return dataclasses.replace(sample, true_logprob=true)

    expect("normalised over the head's padding rows", spoiled(captures, tmp_path / "d", over_padding), tiny_teacher)


def test_mask_of_ones_over_a_chat_is_named(captures: Captures, tiny_teacher: Path, tmp_path: Path) -> None:
    def chat(info: DatasetInfo) -> DatasetInfo:
        corpus = info.corpus.model_copy(update={"description": "a.jsonl; chat template 0123"})
        return info.model_copy(update={"corpus": corpus})

    expect("the loss mask counts every token", spoiled(captures, tmp_path / "d", info=chat), tiny_teacher)


def test_changed_tokenizer_is_named(captures: Captures, tiny_teacher: Path, tmp_path: Path) -> None:
    def other(info: DatasetInfo) -> DatasetInfo:
        return info.model_copy(update={"tokenizer": info.tokenizer.model_copy(update={"hash": "sha256:0"})})

    expect("is not the one the text was tokenised with", spoiled(captures, tmp_path / "d", info=other), tiny_teacher)


def test_truncated_layer_list_is_named(captures: Captures, tiny_teacher: Path, tmp_path: Path) -> None:
    def first_layer(info: DatasetInfo) -> DatasetInfo:
        return info.model_copy(update={"capture": info.capture.model_copy(update={"layers": (0,)})})

    def without_last(sample: Sample) -> Sample:
        return dataclasses.replace(sample, hidden={"attn.0": sample.hidden["attn.0"]})

    shards = spoiled(captures, tmp_path / "d", without_last, first_layer)
    expect(r"hidden states of layers \[1\] are missing", shards, tiny_teacher, layers="all")


def test_other_weights_are_found_out(captures: Captures, tiny_teacher: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoTokenizer, Qwen2ForCausalLM

    torch.manual_seed(1)
    Qwen2ForCausalLM(AutoConfig.from_pretrained(tiny_teacher)).save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(tmp_path / "other")
    expect("true_logprob differs", str(captures.folder / "base"), tmp_path / "other")
