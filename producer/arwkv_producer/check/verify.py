"""Scores some stored samples again with transformers, and names the differences.

Shapes: T tokens (of a sample, or of a chunk of it), V head rows (padding included), C model width.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arwkv_producer.check.rescored_logits import Entries, differences, entries, surprise
from arwkv_producer.config import VerifyConfig
from arwkv_producer.teacher.teacher import Teacher, chosen_layers, find_teacher
from arwkv_producer.teacher.transformers_engine import TransformersTeacher
from arwkv_producer.text.tokenizer import load_tokenizer
from arwkv_store import Dataset, DatasetInfo, Sample, open_dataset
from arwkv_store.errors import CorruptShard, UsageError
from arwkv_store.format.vocabulary import vocabulary_hash

TOLERANCE_NATS = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.3, "quantized": 1.0}
"""Difference of a sample's log-probabilities that another order of operations explains, by the teacher's arithmetic: in
fp32 the largest, in the others the root mean square.

Where activations are rounded to few bits, single values may differ by several nats: the same weights in bf16 and in
fp32 do so within transformers itself. A quantized teacher has a tolerance of its own: transformers multiplies its
weights differently from vLLM, and may not round activations.
"""
CODEC_NATS = {"compact": 0.126, "hybrid": 0.126}
"""Further tolerance for a codec that rounds."""
STOCK_TAIL_MASS = 1e-5
"""Rounding of the tail of vLLM's own prompt_logprobs, which is 1 - P."""
LEAST_TAIL_MASS = 1e-12
"""A tail below this counts as zero."""
STANDARD_ERRORS = 6.0
"""How far from their expectation a sample's draws may lie."""
HIDDEN_TOLERANCE = {"float32": 0.01, "float16": 0.03, "bfloat16": 0.08, "quantized": 0.2}
"""Largest relative error (root mean square over a sample) of a hidden state, bf16 storage included."""
CODEC_HIDDEN = {"fp8": 0.05, "int8": 0.05}
CHUNK_TOKENS = 128
"""Tokens whose distributions are compared at a time."""


@dataclass
class Findings:
    """The largest difference of each quantity among the samples, and the problems in words."""

    differences: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def compare(self, name: str, difference: float, tolerance: float, where: str, hint: str = "") -> None:
        self.differences[name] = max(self.differences.get(name, 0.0), difference)
        if not difference <= tolerance:
            self.problem(f"{where}: {name} differs by {difference:.3g} (at most {tolerance:.3g} expected){hint}")

    def problem(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(text)


def verify(config: VerifyConfig) -> dict[str, Any]:
    """Compare stored samples with the teacher in transformers.

    Raises CorruptShard if one differs, and UsageError if there is none.
    """
    dataset = open_dataset(config.shards)
    teacher = find_teacher(config.teacher)
    findings = Findings()
    _check_identity(config, dataset, teacher, findings)
    if not len(dataset):
        raise UsageError(
            f"{config.shards}: no sample is committed, so there is nothing to verify; run the capture first"
        )
    chosen = sorted(random.Random(config.seed).sample(range(len(dataset)), min(config.samples, len(dataset))))
    samples = [dataset[index] for index in chosen]
    _check_masks(dataset, samples, findings)
    if not findings.problems:
        model = TransformersTeacher(teacher, dataset.info.teacher.dtype)
        arithmetic = arithmetic_of(teacher, dataset.info)
        for sample in samples:
            check_sample(dataset.info, sample, *model.run(sample.tokens), arithmetic, findings)
    if findings.problems:
        more = f" (and {len(findings.problems) - 1} more)" if len(findings.problems) > 1 else ""
        raise CorruptShard(f"{config.shards}: {findings.problems[0]}{more}; capture the dataset again")
    return {"dataset": config.shards, "samples": len(samples), "largest_differences": findings.differences}


def _check_identity(config: VerifyConfig, dataset: Dataset, teacher: Teacher, findings: Findings) -> None:
    info = dataset.info
    if vocabulary_hash(load_tokenizer(teacher).get_vocab()) != info.tokenizer.hash:
        findings.problem(f"the tokenizer of {teacher.name} is not the one the text was tokenized with")
    if teacher.layers != info.teacher.num_hidden_layers or teacher.width != info.teacher.hidden_size:
        findings.problem(f"{teacher.name} is not the teacher: its shape is {teacher.layers} layers of {teacher.width}")
    expected = chosen_layers(config.layers, info.capture.hidden_states, teacher.layers) if config.layers else None
    if expected is not None and info.capture.layers != expected:
        missing = sorted(set(expected) - set(info.capture.layers))
        findings.problem(f"hidden states of layers {missing} are missing: it holds {list(info.capture.layers)}")


def _check_masks(dataset: Dataset, samples: list[Sample], findings: Findings) -> None:
    if "chat template" in dataset.info.corpus.description and all(sample.loss_mask.all() for sample in samples):
        findings.problem("the loss mask counts every token of a chat corpus: prompts would be learned too")


def arithmetic_of(teacher: Teacher, info: DatasetInfo) -> str:
    """The teacher's arithmetic, by its name among the tolerances."""
    return "quantized" if teacher.quantization else info.teacher.dtype


def check_sample(
    info: DatasetInfo, sample: Sample, logits_TV: Tensor, states: dict[str, Tensor], arithmetic: str, findings: Findings
) -> None:
    """Compare a sample with the teacher's logits [T, V] and hidden states [T, C] by name; what differs goes into
    `findings`."""
    _check_logits(info, sample, logits_TV, arithmetic, findings)
    _check_hidden(info, sample, states, arithmetic, findings)


@dataclass
class _Rescored:
    """The teacher's values for a sample's distributions, one chunk of positions after another."""

    true: list[Tensor] = field(default_factory=list)
    """Log-probability of each next token; [T - 1] in all."""
    padded: list[Tensor] = field(default_factory=list)
    """The same over every head row."""
    entropy: list[Tensor] = field(default_factory=list)
    stored: dict[str, list[Tensor]] = field(default_factory=dict)
    """Differences of what is stored, by name."""
    surprises: list[Tensor] = field(default_factory=list)
    """[2, T] in all: excess and variance of what was drawn."""
    impossible: int | None = None
    """A drawn token that has no probability."""


def _rescore(info: DatasetInfo, sample: Sample, all_TV: Tensor) -> _Rescored:
    scored = _Rescored()
    stored = None if sample.logits is None else entries(sample.logits, info.capture)
    least_mass = STOCK_TAIL_MASS if sample.entropy is None else LEAST_TAIL_MASS
    for start in range(0, len(all_TV), CHUNK_TOKENS):
        logits_TV = all_TV[start : start + CHUNK_TOKENS].double()
        full_TV = logits_TV[:, : info.tokenizer.vocab_size].log_softmax(-1)
        next_ids = torch.from_numpy(sample.tokens[start + 1 : start + CHUNK_TOKENS + 1].astype(np.int64))
        scored.true.append(_followed(full_TV, next_ids))
        scored.padded.append(_followed(logits_TV.log_softmax(-1), next_ids))
        scored.entropy.append(-(full_TV.exp() * full_TV).sum(-1).cpu())
        if stored is not None:
            rows = stored.rows(start, start + CHUNK_TOKENS, full_TV.device)
            _compare_entries(scored, full_TV, rows, info.capture.samples or 0, least_mass)
    return scored


def _compare_entries(scored: _Rescored, full_TV: Tensor, rows: Entries, draws: int, least_mass: float) -> None:
    for name, found in differences(full_TV, rows, least_mass).items():
        scored.stored.setdefault(name, []).append(found.cpu())
    if draws:
        excess_T, variance_T, impossible = surprise(full_TV, rows, draws)
        scored.surprises.append(torch.stack([excess_T, variance_T]).cpu())
        scored.impossible = impossible if scored.impossible is None else scored.impossible


def _check_logits(info: DatasetInfo, sample: Sample, logits_TV: Tensor, arithmetic: str, findings: Findings) -> None:
    where, own = f"sample {sample.sample_id}", TOLERANCE_NATS[arithmetic]
    summed_up = _largest if arithmetic == "float32" else _root_mean_square
    codec = CODEC_NATS.get(info.capture.logits_codec, 0.0)
    nats = own + codec
    scored = _rescore(info, sample, logits_TV)
    if sample.true_logprob is not None and sample.entropy is not None:
        true, entropy = torch.cat(scored.true), torch.cat(scored.entropy)
        difference = summed_up(true - torch.from_numpy(sample.true_logprob))
        hint = "".join(_explanations(sample, true, torch.cat(scored.padded), difference))
        findings.compare("true_logprob", difference, own, where, hint)
        findings.compare("entropy", summed_up(entropy - torch.from_numpy(sample.entropy)), nats, where)
    mass = scored.stored.pop("mass", [])
    for name, found in scored.stored.items():
        findings.compare(name, summed_up(torch.cat(found)), nats, where)
    if mass:  # of stored values alone, whatever the teacher's arithmetic
        findings.compare("mass", _largest(torch.cat(mass)), TOLERANCE_NATS["float32"] + codec, where)
    if scored.impossible is not None:
        findings.problem(f"{where}: token {scored.impossible} was drawn, whose probability is 0")
    if scored.surprises:
        excess_T, variance_T = torch.cat(scored.surprises, dim=1)
        error = STANDARD_ERRORS * float(variance_T.sum().sqrt()) / len(excess_T)
        findings.compare("drawn", abs(float(excess_T.mean())), nats + error, where)


def _check_hidden(
    info: DatasetInfo, sample: Sample, states: dict[str, Tensor], arithmetic: str, findings: Findings
) -> None:
    where = f"sample {sample.sample_id}"
    if set(sample.hidden) != set(info.capture.hidden_names()):
        missing = set(info.capture.hidden_names()) - set(sample.hidden)
        findings.problem(f"{where}: hidden states {sorted(missing)} are missing")
    relative = HIDDEN_TOLERANCE[arithmetic] + CODEC_HIDDEN.get(info.capture.hidden_dtype, 0.0)
    for name, stored_TC in sample.hidden.items():
        expected_TC = states[name].float().cpu()
        error = torch.from_numpy(stored_TC.astype(np.float32)) - expected_TC
        findings.compare(name, float(error.norm() / expected_TC.norm()), relative, where)


def _explanations(sample: Sample, true: Tensor, padded: Tensor, difference: float) -> Iterator[str]:
    """The usual mistakes that would explain the stored log-probabilities of the true tokens; `true` and `padded` [T -
    1]: over the tokenizer's vocabulary, and over every head row."""
    assert sample.true_logprob is not None
    stored = torch.from_numpy(sample.true_logprob)
    if len(stored) > 2:
        shifts = (_largest(true[1:] - stored[:-1]), _largest(true[:-1] - stored[1:]))
        if min(shifts) < difference / 10:
            yield "; positions are shifted by one"
    if _largest(padded - stored) < difference / 10:
        yield "; it was normalized over the head's padding rows"


def _followed(full_TV: Tensor, next_ids: Tensor) -> Tensor:
    """Log-probability of each next token, as many as there are; on the CPU."""
    return full_TV[: len(next_ids)].gather(1, next_ids.to(full_TV.device)[:, None]).squeeze(1).cpu()


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max()) if difference.numel() else 0.0


def _root_mean_square(difference: Tensor) -> float:
    return float(difference.double().square().mean().sqrt()) if difference.numel() else 0.0
