"""A small made-up dataset for tests: a Zipf-like teacher whose every stored number follows from a seed."""

from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from arwkv_store import (
    CaptureInfo,
    CorpusInfo,
    Dataset,
    DatasetInfo,
    Sample,
    SparseLogits,
    TeacherInfo,
    TokenizerInfo,
    create_dataset,
)

VOCAB_SIZE = 500
HIDDEN_SIZE = 32
TOP_K = 8


def example_dataset_info(
    *,
    samples: int = 10,
    samples_per_part: int = 4,
    top_k: int | None = TOP_K,
    layers: Sequence[int] = (0, 1),
    hidden_size: int = HIDDEN_SIZE,
    vocab_size: int = VOCAB_SIZE,
    draws: int | None = None,
    **capture: object,
) -> DatasetInfo:
    """Identity of an example dataset; `draws` is CaptureInfo.samples, `capture` overrides its other fields."""
    settings: dict[str, object] = {
        "logits": "top-k",
        "top_k": top_k,
        "samples": draws,
        "hidden_states": "attention" if layers else "none",
        "layers": tuple(layers),
        "max_length": 64,
        **capture,
    }
    return DatasetInfo(
        teacher=TeacherInfo(
            model="example/teacher",
            revision="main",
            model_type="qwen2",
            hidden_size=hidden_size,
            num_hidden_layers=2,
            dtype="float32",
        ),
        tokenizer=TokenizerInfo(hash="0" * 64, vocab_size=vocab_size),
        vocab_size_padded=vocab_size + 12,
        capture=CaptureInfo.model_validate(settings),
        corpus=CorpusInfo(
            fingerprint="example",
            samples=samples,
            tokens=samples * 24,
            samples_per_part=samples_per_part,
            parts=-(-samples // samples_per_part),
            description="made up",
        ),
        command="tests",
        created_by="tests",
    )


def example_samples(
    n: int,
    *,
    first_sample_id: int = 0,
    info: DatasetInfo | None = None,
    length: int | None = None,
    head_dtype: str = "float32",
    seed: int = 0,
) -> list[Sample]:
    """`n` samples that fit `info`, of 17..40 tokens or of `length`; equal arguments give equal samples.

    `head_dtype="bfloat16"` rounds the teacher's logits as a bf16 head does.
    """
    info = info or example_dataset_info()
    return [
        _sample(first_sample_id + i, info, length, head_dtype, np.random.default_rng((seed, first_sample_id + i)))
        for i in range(n)
    ]


def write_example_dataset(
    path: Path | str,
    *,
    info: DatasetInfo | None = None,
    parts: Sequence[int] | None = None,
    length: int | None = None,
    head_dtype: str = "float32",
) -> list[Sample]:
    """Write the example dataset, or only some of its parts, and return the samples written, in order."""
    info = info or example_dataset_info()
    writer = create_dataset(path, info)
    written: list[Sample] = []
    for part in range(info.corpus.parts) if parts is None else parts:
        first = part * info.corpus.samples_per_part
        n = min(info.corpus.samples_per_part, info.corpus.samples - first)
        samples = example_samples(n, first_sample_id=first, info=info, length=length, head_dtype=head_dtype)
        writer.write_shard(part, samples)
        written += samples
    return written


def assert_same_sample(read: Sample, written: Sample) -> None:
    """Every field equal, bit for bit."""
    assert (read.sample_id, read.source) == (written.sample_id, written.source)
    assert_same_array(read.tokens, written.tokens)
    assert_same_array(read.loss_mask, written.loss_mask)
    assert (read.logits is None) == (written.logits is None)
    if read.logits is not None and written.logits is not None:
        assert_same_array(read.logits.counts, written.logits.counts)
        assert_same_array(read.logits.ids, written.logits.ids)
        assert_same_array(read.logits.logprobs, written.logits.logprobs)
        assert_same_array(read.logits.tail_logprob, written.logits.tail_logprob)
    for one, other in ((read.entropy, written.entropy), (read.true_logprob, written.true_logprob)):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert_same_array(one, other)
    assert sorted(read.hidden) == sorted(written.hidden)
    for name in written.hidden:
        assert_same_array(read.hidden[name], written.hidden[name])


def assert_same_array(read: NDArray[np.generic], written: NDArray[np.generic]) -> None:
    """Equal dtype, shape and bytes: unlike ==, this tells -0 from 0 and one NaN from another."""
    assert read.dtype == written.dtype
    assert read.shape == written.shape
    assert read.tobytes() == written.tobytes()


def _sample(sample_id: int, info: DatasetInfo, length: int | None, head_dtype: str, rng: np.random.Generator) -> Sample:
    T = length or int(rng.integers(17, 41))
    V = info.tokenizer.vocab_size
    tokens = rng.integers(0, V, T).astype(np.int32)
    logprobs_TV = _teacher_logprobs(rng, T, V, head_dtype)
    entropy = -(np.exp(logprobs_TV) * logprobs_TV).sum(1)
    loss_mask = np.ones(T, np.bool_)
    loss_mask[: int(rng.integers(0, 3))] = False
    columns = info.capture.hidden_columns()
    return Sample(
        sample_id=sample_id,
        tokens=tokens,
        loss_mask=loss_mask,
        source=f"document-{sample_id}",
        logits=None if info.capture.logits == "none" else _kept(logprobs_TV, info.capture, rng),
        entropy=entropy.astype(np.float32),
        true_logprob=logprobs_TV[np.arange(T - 1), tokens[1:]],
        hidden={_hidden_name(column): _states(rng, T, info.teacher.hidden_size) for column in columns},
    )


def _teacher_logprobs(rng: np.random.Generator, T: int, V: int, head_dtype: str) -> NDArray[np.float32]:
    logits = rng.standard_normal((T, V)).astype(np.float32) * 3 + 8
    if head_dtype == "bfloat16":
        logits = logits.astype(ml_dtypes.bfloat16).astype(np.float32)
    highest = logits.max(1, keepdims=True)
    normalizer = highest + np.log(np.exp(logits - highest).sum(1, keepdims=True))
    return (logits - normalizer).astype(np.float32)


def _kept(logprobs_TV: NDArray[np.float32], capture: CaptureInfo, rng: np.random.Generator) -> SparseLogits:
    T, V = logprobs_TV.shape
    if capture.logits in ("sampled", "hybrid"):
        return _drawn(logprobs_TV, capture, rng)
    k = min(capture.top_k or V, V)
    ids_Tk = np.argsort(-logprobs_TV, axis=1, kind="stable")[:, :k].astype(np.int32)
    kept_Tk = np.take_along_axis(logprobs_TV, ids_Tk, 1)
    counts = np.full(T, k, np.int32)
    if capture.logits == "adaptive":
        mass = np.cumsum(np.exp(kept_Tk.astype(np.float64)), axis=1)
        counts = np.minimum((mass < (capture.top_p or 1.0)).sum(1) + 1, k).astype(np.int32)
    chosen = np.arange(k) < counts[:, None]
    mass_T = np.where(chosen, np.exp(kept_Tk.astype(np.float64)), 0).sum(1)
    with np.errstate(divide="ignore"):
        tail = np.log(np.maximum(1 - mass_T, 0)).astype(np.float32)
    return SparseLogits(counts, ids_Tk[chosen], kept_Tk[chosen], tail)


def _drawn(logprobs_TV: NDArray[np.float32], capture: CaptureInfo, rng: np.random.Generator) -> SparseLogits:
    """Hits of `samples` draws; for "hybrid", the top-k and what the draws that missed them say about the tail."""
    draws = capture.samples or 1
    head_k = (capture.top_k or 0) if capture.logits == "hybrid" else 0
    ids, logprobs, counts, tails = [], [], [], []
    for row in logprobs_TV:
        p = np.exp(row.astype(np.float64))
        head = np.argsort(-row, kind="stable")[:head_k]
        hits = rng.multinomial(draws, p / p.sum())
        hits[head] = 0
        drawn = np.argsort(-hits, kind="stable")[: np.count_nonzero(hits)]
        tail = np.log(max(1 - p[head].sum(), 1e-30)) if head_k else 0.0
        ids.append(np.concatenate([head, drawn]))
        logprobs.append(np.concatenate([row[head], tail + np.log(hits[drawn] / max(hits.sum(), 1))]))
        counts.append(len(head) + len(drawn))
        tails.append(-np.inf if len(drawn) else tail)
    return SparseLogits(
        np.array(counts, np.int32),
        np.concatenate(ids).astype(np.int32),
        np.concatenate(logprobs).astype(np.float32),
        np.array(tails, np.float32),
    )


def _states(rng: np.random.Generator, T: int, C: int) -> NDArray[ml_dtypes.bfloat16]:
    return rng.standard_normal((T, C)).astype(np.float32).astype(ml_dtypes.bfloat16)


def _hidden_name(column: str) -> str:
    _, *rest = column.split(".")
    return rest[0] if len(rest) == 1 else f"{rest[0]}.{int(rest[1])}"


def read_sample_id(asked: tuple[Dataset, int]) -> int:
    """For worker processes: a spawned one can import this module, and no test module."""
    dataset, index = asked
    return dataset[index].sample_id


def tokens_info() -> DatasetInfo:
    """Identity of a dataset of tokens alone, which grows."""
    info = example_dataset_info(layers=(), logits="none", top_k=None, logits_codec="none")
    corpus = info.corpus.model_copy(update={"samples": 0, "tokens": 0, "parts": 0, "fingerprint": "rules"})
    return info.model_copy(update={"corpus": corpus})


def token_samples(first: int, count: int) -> list[Sample]:
    """Samples without a teacher's outputs."""
    return [
        Sample(sample_id=at, tokens=sample.tokens, loss_mask=sample.loss_mask, source=sample.source)
        for at, sample in enumerate(example_samples(first + count)[first:], start=first)
    ]


def write_tokens(folder: Path, parts: Sequence[int] = (0, 1)) -> None:
    """A dataset of tokens alone, 4 samples in each of these parts."""
    writer = create_dataset(folder, tokens_info())
    for part in parts:
        writer.write_shard(part, token_samples(4 * part, 4))
