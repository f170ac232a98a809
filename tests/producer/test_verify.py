"""`producer verify` passes what was captured and names each of the usual mistakes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from arwkv_producer.check.rescored_logits import entries, surprise
from arwkv_producer.check.verify import Findings, check_sample, verify
from arwkv_producer.config import VerifyConfig
from arwkv_producer.teacher.teacher import find_teacher
from arwkv_producer.teacher.transformers_engine import TransformersTeacher
from arwkv_store import DatasetInfo, Sample, SparseLogits, create_dataset
from arwkv_store.errors import CorruptShard, UsageError
from arwkv_store.format.schema import CaptureInfo
from producer_captures import Captures, Reference


def spoiled(
    captures: Captures,
    out: Path,
    sample: Callable[[Sample], Sample] = lambda sample: sample,
    info: Callable[[DatasetInfo], DatasetInfo] = lambda info: info,
    name: str = "base",
) -> str:
    """A dataset of the first part of the base (or another) capture, every sample (and the identity) changed."""
    base = captures.open(name)
    per_part = base.info.corpus.samples_per_part
    corpus = base.info.corpus.model_copy(update={"parts": 1, "samples": per_part})
    writer = create_dataset(str(out), info(base.info.model_copy(update={"corpus": corpus})))
    writer.write_shard(0, [sample(base[index]) for index in range(per_part)])
    return str(out)


def expect(message: str, shards: str, teacher: Path, **flags: str) -> None:
    with pytest.raises(CorruptShard, match=message):
        verify(VerifyConfig(shards=shards, teacher=str(teacher), samples=5, **flags))


@pytest.mark.parametrize("name", ["base", "boundaries", "final", "sampled", "hybrid", "stock"])
def test_what_was_captured_fits(captures: Captures, tiny_teacher: Path, name: str) -> None:
    document = verify(VerifyConfig(shards=str(captures.folder / name), teacher=str(tiny_teacher), samples=4))
    assert document["samples"] == 4
    largest = document["largest_differences"]
    assert largest.pop("drawn", 0.0) < 0.5, "draws are random"
    assert all(difference < (0.126 if name == "hybrid" else 0.01) for difference in largest.values())


@pytest.mark.parametrize(
    ("arithmetic", "moved", "refused"),
    [("bfloat16", slice(3, 4), False), ("float32", slice(3, 4), True), ("bfloat16", slice(None), True)],
)
def test_coarse_arithmetic_may_move_a_few_values_but_not_all(
    captures: Captures, tiny_teacher: Path, arithmetic: str, moved: slice, refused: bool
) -> None:
    """A pretrained teacher in bf16 may be several nats from itself in fp32 at some positions."""
    base, findings = captures.open("base"), Findings()
    sample = max((base[index] for index in range(8)), key=lambda one: len(one.tokens))
    logits_TV, states = TransformersTeacher(find_teacher(str(tiny_teacher)), "float32").run(sample.tokens)
    noise_TV = torch.randn(logits_TV.shape, generator=torch.Generator().manual_seed(0))
    logits_TV = logits_TV.clone()
    logits_TV[moved] += 0.7 * noise_TV[moved]
    check_sample(base.info, sample, logits_TV, states, arithmetic, findings)
    assert bool(findings.problems) == refused, findings


def test_a_dataset_without_samples_is_not_called_verified(
    captures: Captures, tiny_teacher: Path, tmp_path: Path
) -> None:
    create_dataset(str(tmp_path / "empty"), captures.open("base").info)
    with pytest.raises(UsageError, match="no sample is committed"):
        verify(VerifyConfig(shards=str(tmp_path / "empty"), teacher=str(tiny_teacher)))


def eight_bit_products_are_exact() -> bool:
    """Whether the processor has the instructions, and oneDNN, which ONEDNN_MAX_CPU_ISA limits, uses them."""
    most = torch.full((64, 64), 127, dtype=torch.int8)
    exact = bool((torch._int_mm(most, most) == 64 * 127 * 127).all())
    return exact and any(name in Path("/proc/cpuinfo").read_text() for name in ("avx512_vnni", "avx_vnni"))


@pytest.mark.filterwarnings("ignore")  # what compressed-tensors and transformers say to one another
def test_a_quantized_teacher_runs_and_fits_as_far_as_transformers_computes_it_alike(
    captures: Captures, quantized_teacher: Path
) -> None:
    if not eight_bit_products_are_exact():
        assert "this processor has no VNNI instructions" in captures.summaries["quantized"]["message"]
        return
    shards = str(captures.folder / "quantized")
    document = verify(VerifyConfig(shards=shards, teacher=str(quantized_teacher), samples=4))
    assert 0 < document["largest_differences"]["true_logprob"] < 1.0
    whole, quantized = captures.open("base"), captures.open("quantized")
    pairs = [(a.true_logprob, b.true_logprob) for a, b in zip(whole, quantized, strict=True)]
    differences = np.concatenate([np.abs(a - b) for a, b in pairs if a is not None and b is not None])
    assert 0 < differences.mean() < 0.1, "its own weights, not another's"


def with_logits(change: Callable[[SparseLogits], SparseLogits]) -> Callable[[Sample], Sample]:
    def changed(sample: Sample) -> Sample:
        assert sample.logits is not None
        return dataclasses.replace(sample, logits=change(sample.logits))

    return changed


def later_ids(logits: SparseLogits) -> SparseLogits:
    """Every position's ids where the next position has its own."""
    return dataclasses.replace(logits, ids=np.roll(logits.ids, int(logits.counts[0])))


def smaller_tail(logits: SparseLogits) -> SparseLogits:
    return dataclasses.replace(logits, tail_logprob=logits.tail_logprob - 3)


def smaller_draws(logits: SparseLogits) -> SparseLogits:
    """A hybrid's drawn entries hold less than the tail's mass."""
    heads = np.concatenate([np.arange(count) < 8 for count in logits.counts])
    return dataclasses.replace(logits, logprobs=np.where(heads, logits.logprobs, logits.logprobs - 1).astype("f4"))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("base", later_ids, "logprobs differs"),
        ("base", smaller_tail, "tail_logprob differs"),
        ("stock", later_ids, "logprobs differs"),
        ("stock", smaller_tail, "tail_logprob differs"),
        ("boundaries", smaller_tail, "tail_logprob differs"),
        ("hybrid", later_ids, "logprobs differs"),
        ("hybrid", smaller_draws, "tail_logprob differs"),
    ],
)
def test_wrong_logits_are_found_out(
    captures: Captures, tiny_teacher: Path, tmp_path: Path, name: str, change: Callable[..., SparseLogits], message: str
) -> None:
    expect(message, spoiled(captures, tmp_path / "d", with_logits(change), name=name), tiny_teacher)


def test_candidates_that_are_not_the_likeliest_are_found_out(
    captures: Captures, reference: Reference, tiny_teacher: Path, tmp_path: Path
) -> None:
    def next_best(sample: Sample) -> Sample:
        """Ranks 16 to 31 with the log-probabilities that are theirs."""
        assert sample.logits is not None
        values, ids = reference.logprobs(sample).topk(32)
        logits = dataclasses.replace(
            sample.logits,
            ids=ids[:, 16:].int().numpy().reshape(-1),
            logprobs=values[:, 16:].float().numpy().reshape(-1),
        )
        return dataclasses.replace(sample, logits=logits)

    expect("top k differs", spoiled(captures, tmp_path / "d", next_best), tiny_teacher)


def test_draws_from_another_distribution_are_found_out(captures: Captures, tiny_teacher: Path, tmp_path: Path) -> None:
    """Each drawn token may occur; together they are too rare."""

    def mirrored(logits: SparseLogits) -> SparseLogits:
        return dataclasses.replace(logits, ids=499 - logits.ids)

    expect("drawn differs", spoiled(captures, tmp_path / "d", with_logits(mirrored), name="sampled"), tiny_teacher)


def test_a_drawn_token_without_probability_is_found_out() -> None:
    """The last token of four has none, and neither has the head's outside the head."""
    full = torch.tensor([[0.5, 0.3, 0.2, 1e-30]]).double().log()
    for drawn in (3, 0):
        stored = SparseLogits(
            np.array([2], np.int32),
            np.array([0, drawn], np.int32),
            np.log(np.array([0.5, 0.5], np.float32)),
            np.array([-np.inf], np.float32),
        )
        hybrid = CaptureInfo(logits="hybrid", top_k=1, samples=1, max_length=8, logits_codec="hybrid")
        assert surprise(full, entries(stored, hybrid), 1)[2] == drawn


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

    expect("normalized over the head's padding rows", spoiled(captures, tmp_path / "d", over_padding), tiny_teacher)


def test_mask_of_ones_over_a_chat_is_named(captures: Captures, tiny_teacher: Path, tmp_path: Path) -> None:
    def chat(info: DatasetInfo) -> DatasetInfo:
        corpus = info.corpus.model_copy(update={"description": "a.jsonl; chat template 0123"})
        return info.model_copy(update={"corpus": corpus})

    expect("the loss mask counts every token", spoiled(captures, tmp_path / "d", info=chat), tiny_teacher)


def test_changed_tokenizer_is_named(captures: Captures, tiny_teacher: Path, tmp_path: Path) -> None:
    def other(info: DatasetInfo) -> DatasetInfo:
        return info.model_copy(update={"tokenizer": info.tokenizer.model_copy(update={"hash": "sha256:0"})})

    expect("is not the one the text was tokenized with", spoiled(captures, tmp_path / "d", info=other), tiny_teacher)


def test_truncated_layer_list_is_named(captures: Captures, tiny_teacher: Path, tmp_path: Path) -> None:
    def first_layer(info: DatasetInfo) -> DatasetInfo:
        return info.model_copy(update={"capture": info.capture.model_copy(update={"layers": (0,)})})

    def without_last(sample: Sample) -> Sample:
        return dataclasses.replace(sample, hidden={"attn.0": sample.hidden["attn.0"]})

    shards = spoiled(captures, tmp_path / "d", without_last, first_layer)
    expect(r"hidden states of layers \[1\] are missing", shards, tiny_teacher, layers="all")


def test_other_weights_are_found_out(captures: Captures, tiny_teacher: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer, Qwen2ForCausalLM

    torch.manual_seed(1)
    Qwen2ForCausalLM(AutoConfig.from_pretrained(tiny_teacher)).save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(tmp_path / "other")
    expect("true_logprob differs", str(captures.folder / "base"), tmp_path / "other")
