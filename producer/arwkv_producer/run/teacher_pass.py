"""The teacher's pass over samples: engine calls of a good size, each answer checked, a bad one tried once more."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from arwkv_producer.check.samples import BadCapture, GaveUp, to_sample
from arwkv_producer.run.account import Account
from arwkv_producer.run.job import Job
from arwkv_producer.run.sizes import row_bytes
from arwkv_producer.teacher.vllm_setup import unheard
from arwkv_store import Sample

CALL_TOKENS = 1 << 16
"""Tokens sent to the engine in one call: enough to fill its steps."""
CALL_BYTES = 4 << 30
"""But no more than make so many bytes of rows, or one sample."""
BAD_IN_A_ROW = 5
"""Samples without a usable answer after which the run gives up."""


class Engine(Protocol):
    """A running teacher."""

    @property
    def distribution(self) -> Sequence[str]:
        """Names of the rows that `capture` answers of each next-token distribution."""

    def capture(
        self, prompts: Sequence[NDArray[np.int32]], keys: Sequence[int], read: Callable[[int], None]
    ) -> list[dict[str, Any]]:
        """Each prompt's rows by name, in order; `read` gets each prompt's number of tokens as soon as it is done."""


class TeacherPass:
    """Captures parts of a job; counts bad samples over parts."""

    def __init__(self, job: Job, engine: Engine, account: Account) -> None:
        self._job, self._engine, self._account = job, engine, account
        info = job.info
        self._call_tokens = min(CALL_TOKENS, CALL_BYTES // row_bytes(info.capture, info.teacher.hidden_size))
        self._bad_in_a_row = 0
        self.failed: dict[int, BadCapture] = {}
        """Parts that hold a bad sample, and what is wrong with it."""

    def capture_part(self, part: int) -> list[Sample] | None:
        """A part's samples in order, or None (and an entry in `failed`) where one is bad.

        Raises GaveUp after BAD_IN_A_ROW bad samples in a row.
        """
        samples = []
        ids = self._job.part_samples(part)
        texts = [self._job.corpus[sample_id] for sample_id in ids]
        for sample_id, answer in zip(ids, self._answers(ids, texts), strict=True):
            if isinstance(answer, Sample):
                self._bad_in_a_row = 0
                samples.append(answer)
                continue
            self._bad_in_a_row += 1
            self.failed.setdefault(part, answer)
            self._account.bad(sample_id, answer)
            if self._bad_in_a_row == BAD_IN_A_ROW:
                raise GaveUp(f"gave up after {BAD_IN_A_ROW} bad samples in a row; last: {answer}")
        return None if part in self.failed else samples

    def _answers(self, ids: range, texts: Sequence[Sample]) -> Iterator[Sample | BadCapture]:
        for call in self._calls(zip(ids, texts, strict=True)):
            keys, tokens = [sample_id for sample_id, _ in call], [text.tokens for _, text in call]
            answers = self._engine.capture(tokens, keys, self._account.captured)
            for (sample_id, text), rows in zip(call, answers, strict=True):
                yield self._checked(sample_id, text, rows)

    def _checked(self, sample_id: int, text: Sample, rows: Any) -> Sample | BadCapture:
        try:
            return self._build(sample_id, text, rows)
        except BadCapture:
            (rows,) = self._engine.capture([text.tokens], [sample_id], unheard)
        try:
            return self._build(sample_id, text, rows)
        except BadCapture as bad:
            return bad

    def _calls(self, texts: Iterable[tuple[int, Sample]]) -> Iterator[list[tuple[int, Sample]]]:
        call: list[tuple[int, Sample]] = []
        size = 0
        for sample_id, text in texts:
            tokens = len(text.tokens)
            if call and size + tokens > self._call_tokens:
                yield call
                call, size = [], 0
            call.append((sample_id, text))
            size += tokens
        if call:
            yield call

    def _build(self, sample_id: int, text: Sample, rows: Any) -> Sample:
        capture = self._job.info.capture
        return to_sample(
            sample_id,
            text.tokens,
            text.loss_mask,
            text.source,
            rows,
            expected=(*self._engine.distribution, *capture.hidden_names()),
            capture=capture,
        )
