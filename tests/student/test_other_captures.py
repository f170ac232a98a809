"""Stages from what else shards can hold: boundaries for stage align, final hidden states for stage distill."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from arwkv_store import open_dataset
from arwkv_store.interchange.import_parquet import Import, import_dataset
from arwkv_student.bases.attention import BaseAttention
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.data.collate import collate
from arwkv_student.losses.objectives import Objective, align_loss_L, distill_loss
from arwkv_student.settings import TrainSettings
from arwkv_student.training.align import align_outputs
from arwkv_student.training.pipeline import train
from distillkit_files import write_capture


def settings(shards: Path, base: Path, out: Path) -> TrainSettings:
    return TrainSettings(
        shards=(str(shards),),
        base=str(base),
        out=out,
        head_dim=16,
        steps=3,
        batch_size=4,
        align_lr=3e-3,
        distill_lr=3e-3,
        dtype="fp32",
        log_every=1,
        workers=0,
    )


def test_student_learns_from_an_imported_capture_as_from_the_producers(
    tiny_teacher: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    """DistillKit's columns in bf16, one position less than tokens: the same text, order and nearly the same loss."""
    rows = []
    for sample in open_dataset(tiny_shards, columns=["logits"]):
        assert sample.logits is not None
        shape = (len(sample.tokens), -1)
        rows.append((sample.tokens, sample.logits.ids.reshape(shape)[:-1], sample.logits.logprobs.reshape(shape)[:-1]))
    exact = {"d": 500, "k": 16, "exact_k": 16, "exact_dtype": "bfloat16", "residual_bins": [], "delta_encoding": False}
    write_capture(tmp_path / "capture", rows, exact)
    asked = Import(str(tmp_path / "capture"), str(tmp_path / "shards"), "distillkit", teacher=str(tiny_teacher))
    list(import_dataset(replace(asked, samples_per_part=4)))  # as many as the producer's, for the same order
    losses = []
    for shards in (tiny_shards, tmp_path / "shards"):
        out = tmp_path / f"run-{len(losses)}"
        train(replace(settings(shards, tiny_teacher, out), stage="distill"))
        lines = (out / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=5e-3, atol=0)
    assert losses[1][-1] < losses[1][0]


def test_boundaries_give_the_loss_that_attention_outputs_give(
    tiny_teacher: Path, tiny_shards: Path, tiny_boundary_shards: Path
) -> None:
    torch.manual_seed(0)
    base = open_base(str(tiny_teacher))
    student = convert(base, student_config(base, "rad-rwkv7")).model
    stored, streams = (collate(open_dataset(uri)[:4]) for uri in (tiny_shards, tiny_boundary_shards))
    from_attention = align_loss_L(*align_outputs(student, stored), stored["attention_mask"])
    from_boundaries = align_loss_L(
        *align_outputs(student, streams, BaseAttention(base, [0, 1])), streams["attention_mask"]
    )
    torch.testing.assert_close(from_boundaries, from_attention, rtol=2e-2, atol=2e-3)


def test_boundary_shards_align_a_hybrid(tiny_teacher: Path, tiny_boundary_shards: Path, tmp_path: Path) -> None:
    asked = replace(settings(tiny_boundary_shards, tiny_teacher, tmp_path / "run"), stage="align", layers=(1,))
    train(asked)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    student, teacher = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run", tiny_teacher))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(student[name], teacher[name])


def test_final_states_give_the_exact_kl(tiny_teacher: Path, tiny_final_shards: Path, tmp_path: Path) -> None:
    result = train(settings(tiny_final_shards, tiny_teacher, tmp_path / "run"))
    assert set(result["stages"]) == {"distill"}
    base = open_base(str(tiny_teacher))
    student = convert(base, student_config(base, "rad-rwkv7")).model
    batch = collate(open_dataset(tiny_final_shards)[:4])
    head = load_file(tiny_teacher / "model.safetensors")["lm_head.weight"]
    loss = distill_loss(batch, Objective(500, teacher_head_VC=head))
    offline = student(input_ids=batch["input_ids"], head_loss=loss).loss
    log_p = (batch["final"].float() @ head[:500].T).log_softmax(-1)
    log_q = student(batch["input_ids"]).logits[..., :500].log_softmax(-1)
    live = (log_p.exp() * (log_p - log_q)).sum(-1)[batch["predicts"]].mean()
    torch.testing.assert_close(offline, live, rtol=1e-5, atol=1e-6)
