"""What the teacher's draws stand for: in expectation the exact KL and its gradient; and every capture trains."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from teacher_shards import documents, make_shards, stored_logits
from transformers import Qwen2ForCausalLM

from arwkv_store import Sample, create_dataset, open_dataset
from arwkv_store.errors import UsageError
from arwkv_student.data.collate import collate
from arwkv_student.evaluation.fidelity import evaluate
from arwkv_student.losses.objectives import Objective, distill_loss
from arwkv_student.model.loading import load_student
from arwkv_student.settings import TrainSettings
from arwkv_student.training.pipeline import train

V, C, T = 40, 8, 6


@pytest.mark.parametrize(
    ("kind", "weight_of"), [("sampled", "equal"), ("hybrid", "equal"), ("sampled", "error"), ("hybrid", "entropy")]
)
def test_draws_give_the_exact_kl_and_gradient_in_expectation(kind: str, weight_of: str) -> None:
    """Over 40 × 100 captures of the same positions, to within four standard errors of the mean."""
    torch.manual_seed(0)
    logprobs_TV = (2.0 * torch.randn(T, V)).log_softmax(-1)
    hidden_TC, weight = torch.randn(T, C, requires_grad=True), torch.randn(V, C)
    log_q = (hidden_TC @ weight.T).log_softmax(-1)
    entropy_T = -(logprobs_TV.exp() * logprobs_TV).sum(-1)
    # All tokens below are 0.
    weights = {"equal": torch.ones(T), "entropy": entropy_T, "error": 1 - log_q[:, 0].detach().exp()}[weight_of]
    exact = (weights * (logprobs_TV.exp() * (logprobs_TV - log_q)).sum(-1)).mean()
    (exact_gradient,) = torch.autograd.grad(exact, hidden_TC)
    again = logprobs_TV.repeat(100, 1)
    entropy = entropy_T.repeat(100).numpy()
    losses, gradients = [], []
    for key in range(40):
        logits = stored_logits(again, kind, key, top_k=3, draws=5)
        tokens = np.zeros(len(again), np.int32)
        batch = collate([Sample(0, tokens, np.ones(len(again), bool), logits=logits, entropy=entropy)])
        batch["predicts"][:] = True
        loss = distill_loss(batch, Objective(V, token_weight=weight_of))(hidden_TC.repeat(100, 1)[None], weight)
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, hidden_TC)[0])
    for values, expected in ((torch.stack(losses), exact), (torch.stack(gradients), exact_gradient)):
        spread = values.std(0) / len(values) ** 0.5
        assert ((values.mean(0) - expected).abs() <= 4 * spread).all()


CAPTURES = [
    ("top-k", "attention"),
    ("adaptive", "none"),
    ("sampled", "none"),
    ("hybrid", "none"),
    ("none", "final"),
]


@pytest.fixture(scope="module")
def shards_of(tiny_teacher: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, texts = tmp_path_factory.mktemp("captures"), documents(tiny_corpus)
    sizes = {"max_length": 32, "limit": 8, "samples_per_part": 8}
    return {
        logits: str(make_shards(tiny_teacher, texts, folder / logits, logits=logits, hidden=hidden, **sizes))  # type: ignore[arg-type] # plain sizes
        for logits, hidden in CAPTURES
    }


def asked(shards: tuple[str, ...], base: Path, out: Path) -> TrainSettings:
    return TrainSettings(
        shards=shards, base=str(base), out=out, stage="distill", head_dim=16, steps=3, batch_size=8, distill_lr=3e-3,
        dtype="fp32", log_every=1, workers=0,
    )  # fmt: skip


def test_every_capture_trains_towards_the_teacher(
    shards_of: dict[str, str], tiny_teacher: Path, tmp_path: Path
) -> None:
    first = {}
    for logits, uri in shards_of.items():
        train(asked((uri,), tiny_teacher, tmp_path / logits))
        lines = [json.loads(line) for line in (tmp_path / logits / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["loss"] < lines[0]["loss"]
        first[logits] = lines[0]["loss"]
    # The same student on the same samples. One outcome for the tail hides some of the divergence; draws hide none.
    assert first["adaptive"] <= first["none"]
    assert first["top-k"] <= first["none"]
    assert [first["sampled"], first["hybrid"]] == pytest.approx([first["none"]] * 2, rel=0.1)


def test_weights_by_entropy_read_the_entropies_and_are_refused_without(
    shards_of: dict[str, str], tiny_teacher: Path, tmp_path: Path
) -> None:
    train(replace(asked((shards_of["hybrid"],), tiny_teacher, tmp_path / "run"), token_weight="entropy", steps=1))
    source = open_dataset(shards_of["adaptive"])
    without = [replace(sample, entropy=None, true_logprob=None) for sample in source[:]]
    create_dataset(tmp_path / "without", source.info).write_shard(0, without)
    settings = asked((str(tmp_path / "without"),), tiny_teacher, tmp_path / "refused")
    with pytest.raises(UsageError, match=r"--token-weight entropy: .* of 0 of its \d+ tokens"):
        train(replace(settings, token_weight="entropy"))
    train(replace(settings, token_weight="error", steps=1, out=tmp_path / "other"))


def test_held_out_kl_from_draws_is_the_kl(shards_of: dict[str, str], tiny_teacher: Path, tmp_path: Path) -> None:
    train(asked((shards_of["top-k"],), tiny_teacher, tmp_path / "run"))
    student = load_student(tmp_path / "run")
    teacher = Qwen2ForCausalLM.from_pretrained(tiny_teacher).eval()
    samples = open_dataset(shards_of["sampled"])[:]
    total, count = 0.0, 0
    for sample in samples:
        tokens = torch.from_numpy(sample.tokens).long()[None]
        with torch.no_grad():
            log_p, log_q = (model(tokens).logits[0, :-1, :500].log_softmax(-1) for model in (teacher, student))
        total += float((log_p.exp() * (log_p - log_q)).sum())
        count += len(sample.tokens) - 1
    own = {logits: evaluate(student, open_dataset(shards_of[logits]))["kl"] for logits in ("sampled", "hybrid")}
    assert own == pytest.approx({"sampled": total / count, "hybrid": total / count}, rel=0.05)


def test_biased_objectives_and_mixtures_of_kinds_are_refused(
    shards_of: dict[str, str], tiny_teacher: Path, tmp_path: Path
) -> None:
    for change in ({"divergence": "reverse"}, {"divergence": "jsd"}, {"divergence": "tvd"}, {"temperature": 2.0}):
        with pytest.raises(UsageError, match="would be biased"):
            train(replace(asked((shards_of["hybrid"],), tiny_teacher, tmp_path / str(change)), **change))  # type: ignore[arg-type] # by name
    with pytest.raises(UsageError, match="would read final hidden states and logits"):
        train(asked((shards_of["hybrid"], shards_of["none"]), tiny_teacher, tmp_path / "mixed"))
