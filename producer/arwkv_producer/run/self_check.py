"""A run's first prompts, held against transformers before anything is stored, where such a capture is not verified.

The reference runs first and is freed before the engine starts, so that the weights are never in memory twice.
"""

import gc
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from arwkv_producer.check.combination import described, unverified
from arwkv_producer.check.reference import cost, obstacle, reference_bytes
from arwkv_producer.check.samples import BadCapture, to_sample
from arwkv_producer.check.verify import Findings, arithmetic_of, check_sample
from arwkv_producer.config import GenerateConfig
from arwkv_producer.run.job import Job
from arwkv_producer.run.teacher_pass import Engine
from arwkv_producer.teacher.transformers_engine import TransformersTeacher
from arwkv_producer.teacher.vllm_setup import unheard
from arwkv_store import Sample
from arwkv_store.errors import ArwkvError, UsageError

SAMPLES = 4
LOGITS_BYTES = 1 << 30
"""Memory for the reference's logits: a prompt is cut where it would need more than its share."""


class CaptureDiffers(ArwkvError):
    """The engine's values are not those of transformers; nothing was stored."""

    exit_code: ClassVar[int] = 3


@dataclass(frozen=True)
class Expected:
    """A prompt, and what transformers says of it."""

    text: Sample
    logits_TV: Any
    states: dict[str, Any]


def is_due(config: GenerateConfig, job: Job) -> bool:
    """Whether the capture is to be compared: with `auto`, if it is not one that was verified."""
    new = config.self_check == "auto" and unverified(job.teacher, config.capture_backend, job.info.teacher.dtype)
    return config.self_check == "always" or bool(new)


def expected_answers(config: GenerateConfig, job: Job) -> list[Expected]:
    """What the engine's answers to a few prompts have to be; none where transformers cannot run the teacher here. Says
    on stderr what happens and why.

    Raises UsageError if `--self-check always` cannot be done.
    """
    dtype = job.info.teacher.dtype
    what = described(unverified(job.teacher, config.capture_backend, dtype))
    size = reference_bytes(job.teacher, dtype)
    if reason := obstacle(size):
        return _unchecked(config, what, reason)
    print(
        f"this capture is {what}; {cost(size)}; --self-check never leaves this out",
        file=sys.stderr,
    )
    try:
        return _answers_of_reference(job, dtype)
    except (ArwkvError, ImportError, OSError, RuntimeError) as error:
        return _unchecked(config, what, str(error).splitlines()[0])


def _unchecked(config: GenerateConfig, what: str, reason: str) -> list[Expected]:
    if config.self_check == "always":
        raise UsageError(f"--self-check always: {reason}; leave it out, or use a machine that can run the reference")
    print(
        f"this capture is {what}, and cannot check itself here: {reason}; run producer verify on the first shards "
        "where transformers can load the teacher",
        file=sys.stderr,
    )
    return []


def _answers_of_reference(job: Job, dtype: str) -> list[Expected]:
    reference = TransformersTeacher(job.teacher, dtype)
    kept = job.info.capture.hidden_names()
    expected = []
    for text in _first_prompts(job):
        logits_TV, states = reference.run(text.tokens)
        expected.append(Expected(text, logits_TV.cpu(), {name: states[name].cpu() for name in kept}))
    reference.close()
    gc.collect()
    return expected


def _first_prompts(job: Job) -> list[Sample]:
    """Evenly from the first part, each cut to its share of the memory."""
    ids = np.unique(np.linspace(0, len(job.part_samples(0)) - 1, SAMPLES).astype(int))
    length = max(LOGITS_BYTES // (SAMPLES * 4 * job.teacher.head_rows), 2)
    texts = [(int(number), job.corpus[int(number)]) for number in ids]
    return [
        replace(text, sample_id=number, tokens=text.tokens[:length], loss_mask=text.loss_mask[:length])
        for number, text in texts
    ]


def require_expected(expected: Sequence[Expected], engine: Engine, job: Job) -> None:
    """Ask the engine for the prompts. Raises CaptureDiffers where it answers otherwise than transformers."""
    if not expected:
        return
    texts, findings, info = [answer.text for answer in expected], Findings(), job.info
    rows_of_each = engine.capture([text.tokens for text in texts], [text.sample_id for text in texts], unheard)
    names = (*engine.distribution, *info.capture.hidden_names())
    for answer, rows in zip(expected, rows_of_each, strict=True):
        text = answer.text
        try:
            sample = to_sample(text.sample_id, text.tokens, text.loss_mask, text.source, rows, names, info.capture)
        except BadCapture as bad:
            findings.problem(str(bad))
            continue
        check_sample(info, sample, answer.logits_TV, answer.states, arithmetic_of(job.teacher, info), findings)
    if findings.problems:
        raise CaptureDiffers(
            f"--teacher {job.teacher.name}: vLLM does not answer as transformers does here: {findings.problems[0]}; "
            "no shard was written; use --capture-backend transformers, or another --dtype, vLLM or machine, or store "
            "these values all the same with --self-check never"
        )
    largest = max(findings.differences.values(), default=0.0)
    print(f"{len(expected)} prompts fit transformers; the largest difference is {largest:.2g}", file=sys.stderr)
