"""Offline equals live: the losses from shards are the losses with the teacher in the loop."""

from pathlib import Path

import pytest
import torch
from teacher_shards import live_forward
from transformers import Qwen2ForCausalLM

from arwkv_store import open_dataset
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.data.collate import collate
from arwkv_student.losses.objectives import Objective, align_loss_L, distill_loss, error_and_size_2L
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.training.align import align_outputs

ROWS = [0, 3, 5, 9]


@pytest.fixture(scope="module", params=["arwkv", "rad-rwkv7"])
def student(request: pytest.FixtureRequest, tiny_teacher: Path) -> ArwkvForCausalLM:
    torch.manual_seed(0)
    base = open_base(str(tiny_teacher))
    model = convert(base, student_config(base, request.param, {"head_dim": 16})).model
    for parameter in model.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def teacher(tiny_teacher: Path) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM.from_pretrained(tiny_teacher).eval()


@pytest.fixture(scope="module")
def batch(tiny_shards: Path) -> dict[str, torch.Tensor]:
    dataset = open_dataset(tiny_shards)
    return collate([dataset[row] for row in ROWS])


def test_align_loss_from_shards_equals_the_live_teachers(
    student: ArwkvForCausalLM, teacher: Qwen2ForCausalLM, tiny_teacher: Path, batch: dict[str, torch.Tensor]
) -> None:
    """The student's frozen parts are the teacher's for this, so that both streams are one; bf16 storage is the rest."""
    own = Qwen2ForCausalLM.from_pretrained(tiny_teacher).state_dict()
    student.load_state_dict({name: x for name, x in own.items() if ".self_attn." not in name}, strict=False)
    mixed, stored = align_outputs(student, batch)
    offline = align_loss_L(mixed, stored, batch["attention_mask"])
    _, attention, streams = live_forward(teacher, batch["input_ids"])
    errors, v_first = [], None
    context, _ = student.model._context(streams[0], None, None, None, None)
    mask = batch["attention_mask"].bool()
    for layer, block in enumerate(student.model.layers):
        output, v_first, _ = block.time_mix(block.input_layernorm(streams[layer]), v_first, context)
        distance = (attention[layer] - output)[mask].norm(dim=-1) / output.shape[-1] ** 0.5
        errors.append(distance.mean())
    torch.testing.assert_close(offline, torch.stack(errors), rtol=4e-3, atol=4e-3)


def test_align_loss_with_unrounded_outputs_equals_the_live_teachers(
    student: ArwkvForCausalLM, teacher: Qwen2ForCausalLM, tiny_teacher: Path, batch: dict[str, torch.Tensor]
) -> None:
    own = Qwen2ForCausalLM.from_pretrained(tiny_teacher).state_dict()
    student.load_state_dict({name: x for name, x in own.items() if ".self_attn." not in name}, strict=False)
    _, attention, streams = live_forward(teacher, batch["input_ids"])
    mixed, _ = align_outputs(student, {**batch, "attention": torch.stack(attention)})
    offline = align_loss_L(mixed, attention, batch["attention_mask"])
    context, _ = student.model._context(streams[0], None, None, None, None)
    v_first, live = None, []
    for layer, block in enumerate(student.model.layers):
        output, v_first, _ = block.time_mix(block.input_layernorm(streams[layer]), v_first, context)
        live.append(output)
    torch.testing.assert_close(offline, align_loss_L(live, attention, batch["attention_mask"]), rtol=1e-5, atol=1e-5)


def test_distill_loss_from_shards_equals_the_live_teachers(
    student: ArwkvForCausalLM, teacher: Qwen2ForCausalLM, batch: dict[str, torch.Tensor]
) -> None:
    vocab, top_k = 500, 16
    offline = student(input_ids=batch["input_ids"], head_loss=distill_loss(batch, Objective(vocab))).loss
    with torch.no_grad():
        log_p, _, _ = live_forward(teacher, batch["input_ids"])
        log_q = student(batch["input_ids"]).logits
        log_p, log_q = (x[..., :vocab].double().log_softmax(-1) for x in (log_p, log_q))
        kept = log_p.topk(top_k).indices
        inside = (log_p.gather(-1, kept).exp() * (log_p.gather(-1, kept) - log_q.gather(-1, kept))).sum(-1)
        rest_p, rest_q = (x.scatter(-1, kept, -torch.inf).logsumexp(-1) for x in (log_p, log_q))
        live = (inside + rest_p.exp() * (rest_p - rest_q))[batch["predicts"]].mean()
    torch.testing.assert_close(offline.double(), live, rtol=1e-5, atol=1e-5)


def test_padding_counts_in_neither_loss(student: ArwkvForCausalLM, tiny_shards: Path) -> None:
    dataset = open_dataset(tiny_shards)
    lengths = [len(sample.tokens) for sample in dataset]
    rows = [lengths.index(min(lengths)), lengths.index(max(lengths))]
    assert min(lengths) < max(lengths)
    together = collate([dataset[row] for row in rows])
    apart = [collate([dataset[row]]) for row in rows]

    def align(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return align_loss_L(*align_outputs(student, batch), batch["attention_mask"]).mean()

    def distill(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return student(input_ids=batch["input_ids"], head_loss=distill_loss(batch, Objective(500))).loss

    for loss, weight in ((align, "attention_mask"), (distill, "predicts")):
        weights = [float(batch[weight].sum()) for batch in apart]
        expected = sum(w * loss(batch) for w, batch in zip(weights, apart, strict=True)) / sum(weights)
        torch.testing.assert_close(loss(together), expected, rtol=1e-5, atol=1e-6)


def test_relative_error_of_a_silent_mixer_is_one(batch: dict[str, torch.Tensor]) -> None:
    attention = list(batch["attention"])
    error, size = error_and_size_2L([torch.zeros_like(x) for x in attention], attention, batch["attention_mask"])
    torch.testing.assert_close(error, size)
    mask = batch["attention_mask"].bool()
    torch.testing.assert_close(size[0], attention[0][mask].float().square().sum())


@pytest.mark.parametrize("kind", ["paper", "mse"])
def test_align_losses_are_what_they_are_called(kind: str, batch: dict[str, torch.Tensor]) -> None:
    mask, attention = batch["attention_mask"].bool(), [x.double() for x in batch["attention"]]
    mixed = [x + 0.1 * torch.randn_like(x) for x in attention]
    loss = align_loss_L(mixed, attention, mask, kind)
    squares = torch.stack([(a - b)[mask].square().mean(-1) for a, b in zip(mixed, attention, strict=True)])
    torch.testing.assert_close(loss.double(), (squares if kind == "mse" else squares.sqrt()).mean(1), rtol=1e-5, atol=0)
    silent = [torch.zeros_like(x) for x in attention]
    torch.testing.assert_close(align_loss_L(silent, attention, mask, kind, layer_scaled=True), torch.ones(2))
    scaled = align_loss_L(mixed, attention, mask, kind, layer_scaled=True)
    torch.testing.assert_close(scaled, loss / align_loss_L(silent, attention, mask, kind))


def test_positions_that_do_not_count_are_masked(tiny_shards: Path) -> None:
    from dataclasses import replace

    dataset = open_dataset(tiny_shards)
    sample = dataset[0]
    mask = sample.loss_mask.copy()
    mask[:10] = False
    batch = collate([replace(sample, loss_mask=mask)])
    assert not batch["predicts"][0, :9].any()
    assert batch["predicts"][0, 9:-1].all()
    assert not batch["predicts"][0, -1]
