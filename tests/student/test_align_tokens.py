"""Stage 1 from tokens alone: the base's own attention, and each layer's gradient as soon as its loss is there."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from teacher_shards import documents, make_shards
from test_bases import TOKENS, base_forward, student
from tiny_bases import tiny_base
from torch import Tensor

from arwkv_store.errors import UsageError
from arwkv_student.bases.attention import BaseAttention
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.losses.objectives import align_loss_L
from arwkv_student.model.architectures import ARCHITECTURES
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.settings import TrainSettings
from arwkv_student.training.align import LayerLoss, align_losses, align_outputs
from arwkv_student.training.parameters import choose_trained
from arwkv_student.training.pipeline import train

BATCH = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}


def paper_loss(batch: dict[str, Tensor]) -> LayerLoss:
    return lambda _, mixed, attention: align_loss_L([mixed], [attention], batch["attention_mask"])[0]


def gradients(model: ArwkvForCausalLM) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.fixture(scope="module")
def tiny_token_shards(tiny_teacher: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows alone, as `producer tokenise` makes them."""
    out = tmp_path_factory.mktemp("shards") / "tokens"
    return make_shards(tiny_teacher, documents(tiny_corpus), out, max_length=48, limit=24, hidden="none", logits="none")


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_tokens_give_the_loss_and_the_gradient_of_stored_outputs(
    model_type: str, tiny_teacher: Path, tmp_path: Path
) -> None:
    """Every layer's, for each family: q/k norms, a sliding window, experts; padded, packed, and with attention kept."""
    folder = tiny_base(model_type, tiny_teacher, tmp_path / model_type)
    _, attention, _ = base_forward(folder)
    stored = BATCH | {"attention": torch.stack(attention)}
    for layers in (None, (1,)):
        model = student(folder, "rad-rwkv7", layers)
        choose_trained(model, "time-mix")
        base_attention = BaseAttention(open_base(str(folder)), model.config.time_mix_layers)
        results = []
        for batch, own in ((stored, None), (BATCH, base_attention)):
            model.zero_grad(set_to_none=True)
            losses_L = align_losses(model, batch, own, paper_loss(batch))
            losses_L.mean().backward()
            results.append((losses_L.detach(), gradients(model)))
        (losses_L, own_gradients), (others_L, other_gradients) = results
        torch.testing.assert_close(others_L, losses_L, rtol=1e-5, atol=1e-5)
        assert own_gradients.keys() == other_gradients.keys()
        for name, gradient in own_gradients.items():
            torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
        packed = {
            "input_ids": TOKENS.view(1, -1),
            "attention_mask": torch.ones(1, TOKENS.numel(), dtype=torch.int64),
            "cu_seqlens": torch.tensor([0, 20, 40], dtype=torch.int32),
        }
        packed_L = align_losses(model, packed, base_attention, paper_loss(packed))
        torch.testing.assert_close(packed_L.detach(), losses_L, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", [None, (1,)])
@pytest.mark.parametrize("preset", ["arwkv", "rad-rwkv7"])
def test_gradients_at_once_are_those_of_the_whole_graph(
    preset: str, layers: tuple[int, ...] | None, tiny_teacher: Path
) -> None:
    """In `rad-rwkv7` the first layer's value has a gradient from every layer."""
    model = student(tiny_teacher, preset, layers)
    choose_trained(model, "time-mix")
    attention = BaseAttention(open_base(str(tiny_teacher)), model.config.time_mix_layers)
    (align_loss_L(*align_outputs(model, BATCH, attention), BATCH["attention_mask"]).mean() * 3.0).backward()
    whole = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.zero_grad(set_to_none=True)
    for _ in range(2):  # accumulated
        (align_losses(model, BATCH, attention, paper_loss(BATCH)).mean() * 1.5).backward()
    assert whole.keys() == gradients(model).keys()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(("preset", "kept_layers"), [("arwkv", 1), ("rad-rwkv7", 2)])
def test_activations_of_one_layer_are_kept(preset: str, kept_layers: int, tiny_teacher: Path, tmp_path: Path) -> None:
    """Two of `rad-rwkv7`: the first layer waits for the gradient of its value."""
    folder = tiny_base("qwen2", tiny_teacher, tmp_path / "deep", num_hidden_layers=8)
    model = student(folder, preset)
    choose_trained(model, "time-mix")
    attention = BaseAttention(open_base(str(folder)), range(8))
    whole = most_bytes_saved(lambda: align_loss_L(*align_outputs(model, BATCH, attention), BATCH["attention_mask"]))
    at_once = most_bytes_saved(lambda: align_losses(model, BATCH, attention, paper_loss(BATCH)))
    assert at_once < whole * (kept_layers + 0.5) / 8


def most_bytes_saved(forward: Callable[[], Tensor]) -> int:
    """The most bytes that autograd keeps at one time, of a forward and backward pass."""
    alive = [0, 0]

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor, self.size = tensor, tensor.nbytes
            alive[0] += self.size
            alive[1] = max(alive)

        def __del__(self) -> None:
            alive[0] -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        forward().mean().backward()
    return alive[1]


def asked(shards: Path, base: Path, out: Path, **more: Any) -> TrainSettings:
    return TrainSettings(
        shards=(str(shards),), base=str(base), out=out, head_dim=16, steps=4, batch_size=4, align_lr=3e-3,
        dtype="fp32", log_every=1, workers=0, **more,
    )  # fmt: skip


def align_lines(run: Path) -> list[dict[str, float]]:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["stage"] == "align" and "loss" in entry]


def test_tokens_alone_align_as_attention_outputs_do(
    tiny_shards: Path, tiny_token_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """The same samples and steps; the stored outputs are rounded to bf16."""
    for init in ("preset", "calibrated"):
        results = []
        for name, shards in (("stored", tiny_shards), ("tokens", tiny_token_shards)):
            run = tmp_path / init / name
            stage = "auto" if name == "tokens" else "align"
            assert set(train(asked(shards, tiny_teacher, run, stage=stage, init=init))["stages"]) == {"align"}
            results.append(align_lines(run))
        for stored, tokens in zip(*results, strict=True):
            for field in ("loss", "relative_error_0", "relative_error_1"):
                assert tokens[field] == pytest.approx(stored[field], rel=0.02)
    with safe_open(tmp_path / "preset/tokens/model.safetensors", framework="pt") as weights:
        assert not [name for name in weights.keys() if "self_attn" in name]  # noqa: SIM118 -- not a dictionary


def test_shards_for_stage_2_align_too_where_it_is_asked_for(
    tiny_final_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    settings = asked(tiny_final_shards, tiny_teacher, tmp_path / "run")
    assert set(train(replace(settings, stage="align"))["stages"]) == {"align"}
    losses = [line["loss"] for line in align_lines(tmp_path / "run")]
    assert losses[-1] < losses[0]
    calibrated = replace(settings, stage="distill", init="calibrated", steps=1, out=tmp_path / "calibrated")
    assert set(train(calibrated)["stages"]) == {"distill"}
    assert '"stage": "calibrate"' in (tmp_path / "calibrated/metrics.jsonl").read_text()


def test_tokens_are_not_mixed_with_attention_outputs(
    tiny_shards: Path, tiny_token_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    settings = asked(tiny_shards, tiny_teacher, tmp_path / "run")
    with pytest.raises(UsageError, match="would read attention and tokens from"):
        train(replace(settings, shards=(str(tiny_shards), str(tiny_token_shards))))
    other = tiny_base("qwen2", tiny_teacher, tmp_path / "deep", num_hidden_layers=3)
    student(other).save_pretrained(tmp_path / "start")
    for file in tiny_teacher.glob("tokenizer*"):
        (tmp_path / "start" / file.name).write_bytes(file.read_bytes())
    start = asked(tiny_token_shards, tiny_teacher, tmp_path / "run", stage="align", start_from=str(tmp_path / "start"))
    with pytest.raises(UsageError, match=r"3 layers, --base .* 64 and 2"):
        train(replace(start, head_dim=None))
