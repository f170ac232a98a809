"""Score some stored samples again with transformers, and name what does not fit.

Shapes: T tokens, V head rows (padding included), N stored entries.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arwkv_producer.config import VerifyConfig
from arwkv_producer.identity import hidden_names
from arwkv_producer.teacher import Teacher, chosen_layers, find_teacher
from arwkv_producer.tokenizer import load_tokenizer
from arwkv_store import Dataset, Sample, open_dataset
from arwkv_store.errors import CorruptShard
from arwkv_store.vocabulary import vocabulary_hash

TOLERANCE_NATS = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.3}
"""Largest difference of a log-probability that another kernel order explains, by the teacher's arithmetic."""
CODEC_NATS = {"compact": 0.126}
"""What a rounding codec may add."""
HIDDEN_TOLERANCE = {"float32": 0.01, "float16": 0.03, "bfloat16": 0.08}
"""Largest relative error (root mean square over a sample) of a hidden state, bf16 storage included."""
CODEC_HIDDEN = {"fp8": 0.05, "int8": 0.05}


@dataclass
class Findings:
    """The largest difference seen of each quantity, and what is wrong in words."""

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
    """Compare stored samples with the teacher in transformers. Raises CorruptShard where one differs."""
    dataset = open_dataset(config.shards)
    teacher = find_teacher(config.teacher)
    findings = Findings()
    _check_identity(config, dataset, teacher, findings)
    chosen = sorted(random.Random(config.seed).sample(range(len(dataset)), min(config.samples, len(dataset))))
    samples = [dataset[index] for index in chosen]
    _check_masks(dataset, samples, findings)
    if not findings.problems:
        model = _Rescorer(teacher, dataset)
        for sample in samples:
            _check_sample(dataset, sample, model, findings)
    if findings.problems:
        more = f" (and {len(findings.problems) - 1} more)" if len(findings.problems) > 1 else ""
        raise CorruptShard(f"{config.shards}: {findings.problems[0]}{more}; capture the dataset again")
    return {"dataset": config.shards, "samples": len(samples), "largest_differences": findings.differences}


def _check_identity(config: VerifyConfig, dataset: Dataset, teacher: Teacher, findings: Findings) -> None:
    info = dataset.info
    if vocabulary_hash(load_tokenizer(teacher).get_vocab()) != info.tokenizer.hash:
        findings.problem(f"the tokenizer of {teacher.name} is not the one the text was tokenised with")
    if teacher.layers != info.teacher.num_hidden_layers or teacher.width != info.teacher.hidden_size:
        findings.problem(f"{teacher.name} is not the teacher: its shape is {teacher.layers} layers of {teacher.width}")
    expected = chosen_layers(config.layers, info.capture.hidden_states, teacher.layers) if config.layers else None
    if expected is not None and info.capture.layers != expected:
        missing = sorted(set(expected) - set(info.capture.layers))
        findings.problem(f"hidden states of layers {missing} are missing: it holds {list(info.capture.layers)}")


def _check_masks(dataset: Dataset, samples: list[Sample], findings: Findings) -> None:
    if "chat template" in dataset.info.corpus.description and all(sample.loss_mask.all() for sample in samples):
        findings.problem("the loss mask counts every token of a chat corpus: prompts would be learned too")


class _Rescorer:
    """The teacher in transformers, in its captured arithmetic with an fp32 head."""

    def __init__(self, teacher: Teacher, dataset: Dataset) -> None:
        from transformers import AutoModelForCausalLM

        dtype = getattr(torch, dataset.info.teacher.dtype)
        self._model = AutoModelForCausalLM.from_pretrained(teacher.model, revision=teacher.revision, dtype=dtype).eval()
        self._states: dict[str, Tensor] = {}
        layers = self._model.model.layers
        for number, layer in enumerate(layers):
            layer.self_attn.register_forward_hook(self._keep_output(f"attn.{number}"))
            layer.register_forward_pre_hook(self._keep_input(f"boundary.{number}"))
        self._model.model.norm.register_forward_pre_hook(self._keep_input(f"boundary.{len(layers)}"))

    def _keep_output(self, name: str) -> Any:
        return lambda module, arguments, output: self._states.__setitem__(name, output[0][0].float())

    def _keep_input(self, name: str) -> Any:
        return lambda module, arguments: self._states.__setitem__(name, arguments[0][0].float())

    @torch.inference_mode()
    def score(self, sample: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits [T, V] over every head row, fp32, and the hidden states by name."""
        final = self._model.model(torch.from_numpy(sample.tokens.astype(np.int64))[None]).last_hidden_state[0]
        self._states["final"] = final.float()
        return final.float() @ self._model.lm_head.weight.float().T, self._states


def _check_sample(dataset: Dataset, sample: Sample, model: _Rescorer, findings: Findings) -> None:
    info, where = dataset.info, f"sample {sample.sample_id}"
    logits_TV, states = model.score(sample)
    nats = TOLERANCE_NATS[info.teacher.dtype] + CODEC_NATS.get(info.capture.logits_codec, 0.0)
    full_TV = logits_TV[:, : info.tokenizer.vocab_size].double().log_softmax(-1)
    if sample.true_logprob is not None and sample.entropy is not None:
        true = _followed(full_TV, sample)
        difference = _largest(true - torch.from_numpy(sample.true_logprob))
        hint = "".join(_explanations(sample, logits_TV, full_TV, difference))
        findings.compare("true_logprob", difference, TOLERANCE_NATS[info.teacher.dtype], where, hint)
        entropy = -(full_TV.exp() * full_TV).sum(-1)
        findings.compare("entropy", _largest(entropy - torch.from_numpy(sample.entropy)), nats, where)
    if sample.logits is not None:
        rows = torch.from_numpy(np.repeat(np.arange(len(sample.tokens)), sample.logits.counts))
        stored = full_TV[rows, torch.from_numpy(sample.logits.ids).long()]
        findings.compare("logprobs", _largest(stored - torch.from_numpy(sample.logits.logprobs)), nats, where)
    if set(sample.hidden) != set(hidden_names(info.capture)):
        missing = set(hidden_names(info.capture)) - set(sample.hidden)
        findings.problem(f"{where}: hidden states {sorted(missing)} are missing")
    relative = HIDDEN_TOLERANCE[info.teacher.dtype] + CODEC_HIDDEN.get(info.capture.hidden_dtype, 0.0)
    for name, stored_TC in sample.hidden.items():
        error = torch.from_numpy(stored_TC.astype(np.float32)) - states[name]
        findings.compare(name, float(error.norm() / states[name].norm()), relative, where)


def _explanations(sample: Sample, logits_TV: Tensor, full_TV: Tensor, difference: float) -> Iterator[str]:
    """Which of the usual mistakes would make the stored true-token log-probabilities fit."""
    assert sample.true_logprob is not None
    stored = torch.from_numpy(sample.true_logprob)
    if len(stored) > 2:
        true = _followed(full_TV, sample)
        shifts = (_largest(true[1:] - stored[:-1]), _largest(true[:-1] - stored[1:]))
        if min(shifts) < difference / 10:
            yield "; positions are shifted by one"
    padded = _followed(logits_TV.double().log_softmax(-1), sample)
    if _largest(padded - stored) < difference / 10:
        yield "; it was normalised over the head's padding rows"


def _followed(full_TV: Tensor, sample: Sample) -> Tensor:
    """[T - 1] log-probability of each next token."""
    return full_TV[:-1].gather(1, torch.from_numpy(sample.tokens[1:].astype(np.int64))[:, None]).squeeze(1)


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max()) if difference.numel() else 0.0
