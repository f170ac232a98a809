"""Stored values against transformers on the same model, fp32."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from arwkv_store import Sample
from producer_captures import MAX_LENGTH, Captures, Reference

WAYS = ("base", "chunked")


def samples_of(captures: Captures, name: str) -> Iterator[Sample]:
    dataset = captures.open(name)
    for index in range(len(dataset)):
        yield dataset[index]


def as_float(state: NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(state.astype(np.float32))


def test_corpus_is_kept_whole_and_in_order(captures: Captures, tiny_teacher: Path, tiny_corpus: Path) -> None:
    import json

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    texts = [json.loads(line)["text"] for line in tiny_corpus.read_text().splitlines()]
    expected = [token for text in texts for token in tokenizer(text)["input_ids"]]
    samples = list(samples_of(captures, "base"))
    assert [int(token) for sample in samples for token in sample.tokens] == expected
    assert [sample.sample_id for sample in samples] == list(range(len(samples)))
    assert len({len(sample.tokens) for sample in samples}) > 5, "the corpus should be ragged"
    assert max(len(sample.tokens) for sample in samples) == MAX_LENGTH
    assert all(sample.loss_mask.all() for sample in samples)
    assert samples[0].source == "corpus.jsonl:1"
    assert samples[1].source == f"corpus.jsonl:1+{MAX_LENGTH}"


@pytest.mark.parametrize("name", WAYS)
def test_distributions_match_transformers(captures: Captures, reference: Reference, name: str) -> None:
    """Entry t is the distribution of token t+1, normalized over 500 real tokens of a head of 544 rows."""
    for sample in samples_of(captures, name):
        full = reference.logprobs(sample)
        assert sample.logits is not None
        ids = torch.from_numpy(sample.logits.ids.reshape(-1, 16)).long()
        stored = torch.from_numpy(sample.logits.logprobs.reshape(-1, 16))
        assert (sample.logits.counts == 16).all()
        values, _ = full.topk(16, dim=-1)
        torch.testing.assert_close(stored.double(), values, atol=1e-4, rtol=0)
        torch.testing.assert_close(full.gather(1, ids), stored.double(), atol=1e-4, rtol=0)
        tail = full.scatter(1, ids, -torch.inf).logsumexp(-1)
        torch.testing.assert_close(torch.from_numpy(sample.logits.tail_logprob).double(), tail, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", WAYS)
def test_token_statistics_match_transformers(captures: Captures, reference: Reference, name: str) -> None:
    for sample in samples_of(captures, name):
        full = reference.logprobs(sample)
        assert sample.entropy is not None
        assert sample.true_logprob is not None
        entropy = -(full.exp() * full).sum(-1)
        torch.testing.assert_close(torch.from_numpy(sample.entropy).double(), entropy, atol=1e-4, rtol=0)
        followed = torch.from_numpy(sample.tokens[1:].astype(np.int64))
        true = full[:-1].gather(1, followed[:, None]).squeeze(1)
        torch.testing.assert_close(torch.from_numpy(sample.true_logprob).double(), true, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("base", ("attn.0", "attn.1")),
        ("chunked", ("attn.0", "attn.1")),
        ("boundaries", ("boundary.0", "boundary.1", "boundary.2")),
        ("final", ("final",)),
    ],
)
def test_hidden_states_match_transformers_to_bf16(
    captures: Captures, reference: Reference, name: str, states: tuple[str, ...]
) -> None:
    for sample in samples_of(captures, name):
        expected = reference.hidden(sample)
        assert tuple(sorted(sample.hidden)) == states
        for state in states:
            # bf16 keeps 8 significant bits: rounding moves a value by at most 2^-9 of it; 1e-4 covers fp32's order.
            torch.testing.assert_close(as_float(sample.hidden[state]), expected[state], atol=1e-4, rtol=2**-8)


def test_adaptive_keeps_the_fewest_candidates_that_hold_the_mass(captures: Captures, reference: Reference) -> None:
    for sample in samples_of(captures, "boundaries"):
        assert sample.logits is not None
        full = reference.logprobs(sample)
        values, _ = full.topk(64, dim=-1)
        below = values.exp().cumsum(-1) - values.exp() < 0.5
        counts = torch.from_numpy(sample.logits.counts).long()
        # A mass within rounding of the bound may fall on either side.
        assert (counts - below.sum(-1)).abs().max() <= 1
        for position, ids in enumerate(np.split(sample.logits.ids, np.cumsum(sample.logits.counts)[:-1])):
            rest = full[position].clone()
            rest[torch.from_numpy(ids).long()] = -torch.inf
            assert abs(float(rest.logsumexp(0)) - float(sample.logits.tail_logprob[position])) < 1e-4


def test_grouping_and_scheduling_change_no_bit(captures: Captures) -> None:
    for one, other in zip(samples_of(captures, "base"), samples_of(captures, "chunked"), strict=True):
        assert one.logits is not None
        assert other.logits is not None
        assert one.sample_id == other.sample_id
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.logits.ids, other.logits.ids)
        np.testing.assert_array_equal(one.logits.logprobs, other.logits.logprobs)
        np.testing.assert_array_equal(one.logits.counts, other.logits.counts)
        np.testing.assert_array_equal(one.logits.tail_logprob, other.logits.tail_logprob)
        np.testing.assert_array_equal(one.entropy, other.entropy)
        np.testing.assert_array_equal(one.true_logprob, other.true_logprob)
        for name, state in one.hidden.items():
            np.testing.assert_array_equal(as_float(state), as_float(other.hidden[name]))


def test_sampled_ids_are_the_teachers_and_hybrid_holds_all_the_mass(captures: Captures, reference: Reference) -> None:
    for sample in samples_of(captures, "sampled"):
        assert sample.logits is not None
        assert set(np.rint(np.exp(sample.logits.logprobs) * 20)) <= set(range(1, 21))
        assert sample.logits.ids.max() < 500
    for index, sample in enumerate(samples_of(captures, "hybrid")):
        assert sample.logits is not None
        if index % 20:
            continue
        full = reference.logprobs(sample)
        values, _ = full.topk(8, dim=-1)
        entries = np.split(np.arange(len(sample.logits.ids)), np.cumsum(sample.logits.counts)[:-1])
        for position, at in enumerate(entries):
            logprobs = sample.logits.logprobs[at]
            assert 8 < len(at) <= 14
            np.testing.assert_allclose(logprobs[:8], values[position], atol=0.13)
            assert abs(float(np.exp(logprobs).sum()) - 1) < 0.05
