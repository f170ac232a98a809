"""Fused and eager element-wise parts of a time mixer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_bases import tiny_base
from torch._dynamo.testing import CompileCounter

from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.model import elementwise
from arwkv_student.model.decoder_layer import ArwkvDecoderLayer
from arwkv_student.model.time_mix import TimeMix, TimeMixContext
from arwkv_student.model.time_mix_options import BaseShape, preset_options


@pytest.mark.slow  # compiles
@pytest.mark.filterwarnings("ignore:.*jit.script_method:DeprecationWarning")  # torch's compiler, of itself
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # likewise
@pytest.mark.parametrize("preset", ["arwkv-gate-active-mlp", "rad-rwkv7"])
def test_fused_parts_give_the_same_output_and_gradients(preset: str) -> None:
    torch.manual_seed(0)
    options = preset_options(
        preset, BaseShape(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32)
    )
    mixer = TimeMix(options, hidden_size=64, layer=1, num_layers=2)
    mixer.initialize()
    torch.nn.init.normal_(mixer.output.weight)  # starts at zero, which would hide every difference
    x_BTC = torch.randn(2, 9, 64, requires_grad=True)
    v_first_BTU = torch.randn(2, 9, options.key_value_width)
    angles_BTD = torch.rand(2, 9, options.head_dim)
    mask_BT1 = torch.ones(2, 9, 1)
    mask_BT1[0, :3] = 0
    context = TimeMixContext(cos_sin_BTD=(angles_BTD.cos(), angles_BTD.sin()), mask_BT1=mask_BT1)
    results = []
    for mixer.fuse in (False, True):
        y_BTC, _, _ = mixer(x_BTC, v_first_BTU, context)
        results.append((y_BTC, *torch.autograd.grad(y_BTC.square().sum(), [x_BTC, *mixer.parameters()])))
    for eager, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, eager, rtol=1e-3, atol=1e-4)


@pytest.mark.slow  # as above
@pytest.mark.filterwarnings("ignore:.*jit.script_method:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("family", ["qwen2", "olmo2", "qwen3_moe"])
def test_fused_layers_give_the_same_losses_and_gradients(family: str, tiny_teacher: Path, tmp_path: Path) -> None:
    base = open_base(str(tiny_base(family, tiny_teacher, tmp_path / family)))
    model = convert(base, student_config(base, "arwkv", {"head_dim": 16}, layers=(0,))).model
    for mixer in (module for module in model.modules() if isinstance(module, TimeMix)):
        torch.nn.init.normal_(mixer.output.weight, std=0.1)
    ids_BT = torch.arange(18).view(2, 9) + 5
    results = []
    for fuse in (False, True):
        for part in (module for module in model.modules() if isinstance(module, TimeMix | ArwkvDecoderLayer)):
            part.fuse = fuse
        loss = model(input_ids=ids_BT, labels=ids_BT).loss
        results.append((loss, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)))
    for eager, fused in zip(*results, strict=True):
        assert (eager is None) == (fused is None)
        if eager is not None:
            torch.testing.assert_close(fused, eager, rtol=1e-3, atol=1e-5)


def test_shapes_beyond_the_most_run_eagerly_and_are_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiled = []

    def compile(function: Any, *, dynamic: bool) -> Any:
        def run(*arguments: Any) -> Any:
            compiled.append(arguments)
            return function(*arguments)

        return run

    monkeypatch.setattr(elementwise.torch, "compile", compile)
    run = elementwise.fused(lambda x: x + 1)
    for length in range(1, elementwise.MOST_VARIANTS + 20):
        assert torch.equal(run(torch.zeros(length)), torch.ones(length))
    assert len(compiled) == elementwise.MOST_VARIANTS
    assert caplog.text.count("--fuse: <lambda> was compiled for 64 shapes of batches; others run eagerly") == 1
    run(torch.zeros(5))
    assert len(compiled) == elementwise.MOST_VARIANTS + 1


def test_as_many_lengths_as_training_has_are_compiled() -> None:
    counter, compile = CompileCounter(), torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            elementwise.torch, "compile", lambda function, dynamic: compile(function, backend=counter, dynamic=dynamic)
        )
        run = elementwise.fused.__wrapped__(elementwise.mixed_output)
    for length in range(64, 64 * 13, 64):
        y_BTHD = torch.randn(1, length, 2, 16)
        run(y_BTHD, y_BTHD, y_BTHD, y_BTHD, None, None, gate_around_one=False)
    assert counter.frame_count == 12, "torch.compile's own limit is 8"
