"""`student eval` says what a dense teacher and student say, position by position."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from transformers import Qwen2ForCausalLM

from arwkv_store import create_dataset, open_dataset
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.evaluation.fidelity import evaluate

REAL_IDS = 500


@torch.no_grad()
def test_figures_are_the_dense_models(tiny_teacher: Path, tiny_shards: Path, tmp_path: Path) -> None:
    """Ragged samples whose loss masks leave some positions out; the tail is one outcome beside the 16 stored tokens."""
    base = open_base(str(tiny_teacher))
    torch.manual_seed(0)
    student = convert(base, student_config(base, "rad-rwkv7", layers=[1])).model.eval()
    teacher = Qwen2ForCausalLM.from_pretrained(tiny_teacher).eval()
    stored = open_dataset(tiny_shards)
    writer = create_dataset(tmp_path / "masked", stored.info)
    samples = []
    for number, sample in enumerate(stored[:8]):
        mask = sample.loss_mask.copy()
        mask[: 3 * number] = False
        samples.append(dataclasses.replace(sample, loss_mask=mask))
    writer.write_shard(0, samples[:4])
    writer.write_shard(1, samples[4:])

    kl, teacher_nll, student_nll, agreed = [], [], [], []
    for sample in samples:
        tokens = torch.from_numpy(sample.tokens).long()
        log_p_TV, log_q_TV = (
            model(tokens[None]).logits[0, :, :REAL_IDS].log_softmax(-1) for model in (teacher, student)
        )
        for t in range(len(tokens) - 1):
            if not sample.loss_mask[t + 1]:
                continue
            log_p, log_q, true = log_p_TV[t], log_q_TV[t], int(tokens[t + 1])
            top = log_p.topk(16).indices
            rest = torch.ones(REAL_IDS, dtype=torch.bool).index_fill(0, top, False)
            outcomes_p, outcomes_q = (torch.cat([x[top], x[rest].logsumexp(0)[None]]) for x in (log_p, log_q))
            kl.append(float((outcomes_p.exp() * (outcomes_p - outcomes_q)).sum()))
            teacher_nll.append(-float(log_p[true]))
            student_nll.append(-float(log_q[true]))
            agreed.append(bool(log_p.argmax() == log_q.argmax()))

    count = len(kl)
    own, theirs = (math.exp(sum(nll) / count) for nll in (student_nll, teacher_nll))
    assert 0 < sum(agreed) < count
    assert evaluate(student, open_dataset(tmp_path / "masked"), batch_size=3) == pytest.approx(
        {
            "kl": sum(kl) / count,
            "student_perplexity": own,
            "teacher_perplexity": theirs,
            "perplexity_ratio": own / theirs,
            "top1_agreement": sum(agreed) / count,
            "tokens": count,
        },
        rel=1e-4,
    )
