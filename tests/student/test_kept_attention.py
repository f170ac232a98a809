"""Layers that keep attention with a window, or without rotary embedding."""

from pathlib import Path
from typing import Any

import pytest
import torch

from arwkv_store.errors import UsageError
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
