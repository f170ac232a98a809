"""Fused and eager element-wise parts of a time mixer."""

import pytest
import torch

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
