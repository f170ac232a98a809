"""Answers that cannot be used: never committed, named, and too many in a row end the run."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from arwkv_producer.check.samples import BadCapture, sparse_logits, to_sample
from arwkv_producer.config import GenerateConfig
from arwkv_producer.run.account import Account
from arwkv_producer.run.job import Job
from arwkv_producer.run.teacher_pass import TeacherPass
from arwkv_producer.teacher.teacher import Teacher
from arwkv_store.format.schema import CaptureInfo
from producer_recording import plain_corpus
from store_examples import example_dataset_info

T, K = 6, 4
EXPECTED = ("ids", "logprobs", "tail_logprob", "entropy", "true_logprob", "attn.0")
QUIET = GenerateConfig(teacher="m", data=("d",), out="o")


def good_rows() -> dict[str, torch.Tensor]:
    logprobs = torch.tensor([0.4, 0.3, 0.2, 0.05]).log().expand(T, K).contiguous()
    return {
        "ids": torch.arange(K, dtype=torch.int32).expand(T, K).contiguous(),
        "logprobs": logprobs,
        "tail_logprob": torch.full((T,), 0.05).log(),
        "entropy": torch.ones(T),
        "true_logprob": torch.full((T,), -1.0),
        "drawn": torch.zeros(T, 0, dtype=torch.int32),
        "attn.0": torch.ones(T, 8, dtype=torch.bfloat16),
    }


def build(rows: dict[str, torch.Tensor]) -> Any:
    return to_sample(
        7,
        np.arange(T, dtype=np.int32),
        np.ones(T, np.bool_),
        "a.txt",
        rows,
        EXPECTED,
        CaptureInfo(top_k=K, max_length=T),
    )


def test_good_rows_make_a_sample() -> None:
    sample = build(good_rows())
    assert sample.sample_id == 7
    assert sample.true_logprob.shape == (T - 1,)
    assert sample.hidden["attn.0"].shape == (T, 8)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("logprobs", torch.nan, "logprobs at token 2 is nan"),
        ("entropy", torch.inf, "entropy at token 2 is inf"),
        ("attn.0", torch.inf, "attn.0 at token 2 is inf"),
        ("tail_logprob", torch.nan, "tail_logprob at token 2 is nan"),
    ],
)
def test_values_that_are_not_finite_are_refused_by_sample(name: str, value: float, message: str) -> None:
    rows = good_rows()
    rows[name] = rows[name].clone()
    rows[name][2] = value
    with pytest.raises(BadCapture, match=rf"sample 7 \(a.txt\): {message}"):
        build(rows)


def test_missing_and_short_rows_are_refused() -> None:
    rows = good_rows()
    del rows["attn.0"]
    with pytest.raises(BadCapture, match=r"sample 7 \(a.txt\): the teacher returned no attn.0"):
        build(rows)
    rows = good_rows()
    rows["ids"] = rows["ids"][:-1]
    with pytest.raises(BadCapture, match="5 rows of ids for 6 tokens"):
        build(rows)


def test_adaptive_moves_what_is_not_kept_into_the_tail() -> None:
    rows = {name: tensor.numpy() for name, tensor in good_rows().items() if name != "attn.0"}
    logits = sparse_logits(rows["ids"], rows["logprobs"], rows["tail_logprob"], top_p=0.7)
    assert logits.counts.tolist() == [3] * T or logits.counts.tolist() == [2] * T
    kept = np.exp(logits.logprobs).reshape(T, -1).sum(axis=1)
    np.testing.assert_allclose(kept + np.exp(logits.tail_logprob), 1.0, atol=1e-6)


class FaultyEngine:
    """Answers well, except for the samples named: `times` bad answers each."""

    distribution = EXPECTED[:-1]

    def __init__(self, faults: dict[int, int]) -> None:
        self.faults = dict(faults)
        self.calls: list[list[int]] = []

    def capture(
        self, prompts: Sequence[NDArray[np.int32]], keys: Sequence[int], read: Callable[[int], None]
    ) -> list[dict[str, torch.Tensor]]:
        self.calls.append(list(keys))
        answers = []
        for key in keys:
            bad = self.faults.get(key, 0) > 0
            self.faults[key] = self.faults.get(key, 0) - 1
            answers.append({} if bad else {k: v for k, v in good_rows().items() if k != "attn.0"})
        return answers


def teacher_pass(faults: dict[int, int], engine: FaultyEngine | None = None) -> TeacherPass:
    samples = 20
    corpus = plain_corpus(samples, T)
    info = example_dataset_info()
    info = info.model_copy(
        update={
            "capture": info.capture.model_copy(update={"logits": "top-k", "top_k": K, "hidden_states": "none"}),
            "corpus": info.corpus.model_copy(update={"samples_per_part": 5, "samples": samples, "parts": 4}),
        }
    )
    teacher = Teacher(model="m", name="m", revision=None, config={}, architecture="Qwen2ForCausalLM")
    return TeacherPass(Job(teacher, corpus, info, "out"), engine or FaultyEngine(faults), Account(QUIET))


def test_a_call_makes_no_more_rows_than_memory_is_meant_to_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of these samples are 4 candidates of 8 bytes, 12 of statistics, 5 of token and mask."""
    for bytes_allowed, calls in ((2 * T * 49, [[0, 1], [2, 3], [4]]), (1, [[0], [1], [2], [3], [4]])):
        monkeypatch.setattr("arwkv_producer.run.teacher_pass.CALL_BYTES", bytes_allowed)
        engine = FaultyEngine({})
        teacher_pass({}, engine).capture_part(0)
        assert engine.calls == calls


def test_sample_that_fails_once_is_captured_again() -> None:
    teacher = teacher_pass({3: 1})
    samples = teacher.capture_part(0)
    assert samples is not None
    assert [sample.sample_id for sample in samples] == [0, 1, 2, 3, 4]
    assert not teacher.failed


def test_part_with_a_bad_sample_is_held_back_and_the_next_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    teacher = teacher_pass({3: 9})
    assert teacher.capture_part(0) is None
    assert "sample 3 (a.txt): the teacher returned no ids" in str(teacher.failed[0])
    assert "sample 3 (a.txt)" in capsys.readouterr().err
    assert teacher.capture_part(1) is not None


def test_five_bad_samples_in_a_row_end_the_run() -> None:
    teacher = teacher_pass(dict.fromkeys(range(20), 9))
    with pytest.raises(BadCapture, match="gave up after 5 bad samples in a row; last: sample 4"):
        teacher.capture_part(0)
