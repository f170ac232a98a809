"""Layers that keep attention with a window, or without rotary embedding."""

from pathlib import Path
from typing import Any

import pytest
import torch

from arwkv_kernels import blocked_attention
from arwkv_store.errors import UsageError
from arwkv_student.bases.attention_function import attend_by_blocks
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import config_of, convert, student_config
from arwkv_student.model.loading import load_student
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.settings import TrainSettings

TOKENS = torch.randint(1, 500, (2, 24), generator=torch.Generator().manual_seed(0))


def student(teacher: Path, layers: tuple[int, ...] = (), **kept: Any) -> ArwkvForCausalLM:
    base = open_base(str(teacher))
    torch.manual_seed(0)
    model = convert(base, student_config(base, "arwkv", {"head_dim": 16}, layers, **kept)).model.eval()
    for layer in layers:
        torch.nn.init.normal_(model.model.layers[layer].time_mix.output.weight, std=0.2)
    return model


def last_logits(model: ArwkvForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(tokens, use_cache=False).logits[:, -1]
    return logits


def test_window_hides_what_lies_before_it(tiny_teacher: Path) -> None:
    changed = TOKENS.clone()
    changed[:, :10] = 7
    narrow, wide = student(tiny_teacher, kept_window=4), student(tiny_teacher, kept_window=24)
    torch.testing.assert_close(last_logits(narrow, changed), last_logits(narrow, TOKENS))
    assert not torch.allclose(last_logits(wide, changed), last_logits(wide, TOKENS))
    torch.testing.assert_close(last_logits(wide, TOKENS), last_logits(student(tiny_teacher), TOKENS))


def test_without_rope_order_is_not_seen(tiny_teacher: Path) -> None:
    """In one layer of attention alone: what stands before the last token may stand in any order."""
    model = student(tiny_teacher, kept_rope=False)
    model.model.layers = model.model.layers[:1]
    shuffled = torch.cat([TOKENS[:, :-1].flip(1), TOKENS[:, -1:]], dim=1)
    torch.testing.assert_close(last_logits(model, shuffled), last_logits(model, TOKENS), rtol=1e-4, atol=1e-4)
    turned = student(tiny_teacher)
    turned.model.layers = turned.model.layers[:1]
    assert not torch.allclose(last_logits(turned, shuffled), last_logits(turned, TOKENS), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kept", [{"kept_rope": False}, {"kept_window": 5}])
def test_hybrid_is_saved_and_generates_as_it_rereads(kept: dict[str, Any], tiny_teacher: Path, tmp_path: Path) -> None:
    model = student(tiny_teacher, (0,), **kept)
    model.save_pretrained(tmp_path)
    model = load_student(tmp_path).eval()
    given = model.generate(TOKENS[:, :9], max_new_tokens=8, do_sample=False)
    logits = model(given, use_cache=False).logits
    assert torch.equal(logits[:, 8:-1].argmax(-1), given[:, 9:])


def test_flags_of_the_command_say_so(tiny_teacher: Path) -> None:
    base = open_base(str(tiny_teacher))
    config = config_of(base, TrainSettings(layers=(1,), kept_rope=False, kept_window=8, head_dim=16))
    assert (config.kept_rope, config.sliding_window) == (False, 8)
    assert config.layer_types == ["sliding_attention", "linear_attention"]
    plain = config_of(base, TrainSettings(layers=(1,), head_dim=16))
    assert (plain.kept_rope, plain.sliding_window) == (True, None)
    with pytest.raises(UsageError, match="--kept-window 0: give at least 1"):
        TrainSettings(kept_window=0)


def test_attention_by_blocks_is_torchs_but_for_rounding(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16 on a CPU, forward and backward; in fp32 it is torch's own, and no file names it."""
    monkeypatch.setattr(blocked_attention, "_has_matrix_units", lambda: False)  # with them, forward is torch's own
    results = []
    for blocks in (False, True):
        model = student(tiny_teacher, (0,))
        if blocks:
            attend_by_blocks(model)
        exact = last_logits(model, TOKENS)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(TOKENS, labels=TOKENS, use_cache=False).loss
        loss.backward()
        gradient = model.model.layers[1].self_attn.q_proj.weight.grad
        assert gradient is not None
        results.append((exact, loss.detach(), gradient))
    (exact, loss, gradient), (exact_by_blocks, loss_by_blocks, gradient_by_blocks) = results
    assert torch.equal(exact, exact_by_blocks)
    torch.testing.assert_close(loss_by_blocks, loss, rtol=1e-3, atol=0)
    assert not torch.equal(loss_by_blocks, loss)
    assert (gradient_by_blocks - gradient).norm() < 0.02 * gradient.norm()
    model.save_pretrained(tmp_path)
    assert "attn_implementation" not in (tmp_path / "config.json").read_text()
    assert load_student(tmp_path).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kept", [{}, {"kept_window": 5}])
def test_padding_on_the_right_changes_nothing(kept: dict[str, Any], tiny_teacher: Path) -> None:
    model = student(tiny_teacher, (0,), **kept)
    mask = torch.ones_like(TOKENS)
    mask[1, 9:] = 0
    with torch.no_grad():
        padded = model(TOKENS, attention_mask=mask, use_cache=False).logits
        alone = model(TOKENS[1:, :9], use_cache=False).logits
    torch.testing.assert_close(padded[1:, :9], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(padded[:1], model(TOKENS[:1], use_cache=False).logits, rtol=1e-4, atol=1e-4)
