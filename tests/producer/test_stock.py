"""Top-k through vLLM's own prompt_logprobs: the same values as our hook's, and a refusal of what it cannot give."""

import numpy as np
import pytest
import torch

from arwkv_producer.config import GenerateConfig
from arwkv_producer.teacher.stock_engine import tail_logprob
from arwkv_producer.teacher.vllm_setup import VERIFIED_VLLM, unverified
from arwkv_store.errors import UsageError
from producer_captures import Captures, Reference


def test_both_backends_keep_the_same_distributions(captures: Captures, reference: Reference) -> None:
    """But for tokens whose log-probabilities differ by less than rounding: they may trade places, at the k-th also with
    one that is not kept."""
    ours, stock = captures.open("base"), captures.open("stock")
    assert "error" not in captures.summaries["stock"], captures.summaries["stock"]
    assert len(ours) == len(stock)
    for index in range(len(ours)):
        one, other = ours[index], stock[index]
        assert one.logits is not None
        assert other.logits is not None
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.logits.counts, other.logits.counts)
        np.testing.assert_allclose(one.logits.logprobs, other.logits.logprobs, atol=1e-4)
        np.testing.assert_allclose(one.logits.tail_logprob, other.logits.tail_logprob, atol=1e-4)
        assert (one.logits.ids == other.logits.ids).mean() > 0.9
        logprobs_TV = reference.logprobs(one).numpy()
        positions = np.repeat(np.arange(len(one.tokens)), one.logits.counts)
        for logits in (one.logits, other.logits):
            assert len(set(zip(positions, logits.ids, strict=True))) == len(positions), "a token twice in one position"
            np.testing.assert_allclose(logprobs_TV[positions, logits.ids], logits.logprobs, atol=1e-4)


def test_stock_stores_no_statistics_that_it_does_not_have(captures: Captures) -> None:
    sample = captures.open("stock")[0]
    assert sample.entropy is None
    assert sample.true_logprob is None


def test_one_dataset_is_made_by_one_backend(captures: Captures) -> None:
    refusal = captures.summaries["other_backend"]
    assert (refusal["error"], refusal["exit_code"]) == ("ConfigurationDiffers", 2)
    assert "created by arwkv producer, vLLM prompt_logprobs" in refusal["message"]


@pytest.mark.parametrize(
    "asked", [{"logits": "sampled"}, {"logits": "hybrid"}, {"hidden_states": "final"}], ids=lambda asked: str(asked)
)
def test_what_stock_cannot_give_is_refused(asked: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="prompt_logprobs hold only the most likely tokens"):
        GenerateConfig(teacher="t", data=("d",), out="o", capture_backend="stock", **asked)


def test_tail_is_what_the_kept_mass_leaves() -> None:
    logprobs = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)).log_softmax(-1).sort(descending=True)
    kept = logprobs.values[:, :8].numpy()
    expected = logprobs.values[:, 8:].double().logsumexp(-1)
    np.testing.assert_allclose(tail_logprob(kept, 40), expected, atol=1e-5)
    assert np.isneginf(tail_logprob(logprobs.values.numpy(), 40)).all()


def test_unknown_version_and_runner_are_warned_of() -> None:
    assert unverified(VERIFIED_VLLM + "+cpu", "V1") is None
    for version, runner in (("9.9.9", "V1"), (VERIFIED_VLLM, "V2")):
        warning = unverified(version, runner)
        assert warning is not None
        assert all(word in warning for word in (version, runner, VERIFIED_VLLM, "producer verify"))
