"""What a time mixer hands to the recurrence: half precision is what reaches a GPU's chunk kernels."""

from typing import Any

import pytest
import torch

from arwkv_student.model import time_mix
from arwkv_student.model.time_mix_options import BaseShape, preset_options

HALF = (torch.bfloat16, torch.float16)


def mixer_and_input(preset: str) -> tuple[time_mix.TimeMix, tuple[Any, ...]]:
    torch.manual_seed(0)
    options = preset_options(
        preset, BaseShape(hidden_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=32)
    )
    mixer = time_mix.TimeMix(options, hidden_size=64, layer=1, num_layers=2)
    mixer.initialize()
    torch.nn.init.normal_(mixer.output.weight, std=0.1)
    angles_BTD = torch.rand(1, 20, options.head_dim)
    context = time_mix.TimeMixContext(cos_sin_BTD=(angles_BTD.cos(), angles_BTD.sin()))
    return mixer, (torch.randn(1, 20, 64), torch.randn(1, 20, options.key_value_width), context)


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[list[torch.dtype]]:
    """The dtypes of r, w, k, v, a, b of each call of the recurrence, with the decision made as for a GPU."""
    decide, recurrence, seen = time_mix.recurrence_dtype, time_mix.wkv7, []

    def spy(*inputs: torch.Tensor, **options: Any) -> Any:
        seen.append([x.dtype for x in inputs])
        return recurrence(*inputs, **options)

    monkeypatch.setattr(time_mix, "recurrence_dtype", lambda _, dtype: decide(torch.device("cuda"), dtype))
    monkeypatch.setattr(time_mix, "wkv7", spy)
    return seen


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("preset", ["arwkv", "rad-rwkv7"])
def test_half_precision_reaches_the_recurrence_with_the_decay_in_fp32(
    preset: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixer, (x_BTC, v_first_BTU, context) = mixer_and_input(preset)
    whole = mixer(x_BTC, v_first_BTU, context)[0]
    seen = as_on_a_gpu(monkeypatch)
    with torch.autocast("cpu", dtype):
        lowered = mixer(x_BTC, v_first_BTU, context)[0]
    mixer.to(dtype)(x_BTC.to(dtype), v_first_BTU.to(dtype), context)
    assert seen == [[dtype, torch.float32, dtype, dtype, dtype, dtype]] * 2
    assert ((lowered - whole).norm() / whole.norm()).item() < 0.02


def test_fp32_stays_fp32_and_a_cpu_never_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in HALF:
        assert time_mix.recurrence_dtype(torch.device("cpu"), dtype) == torch.float32
    mixer, arguments = mixer_and_input("arwkv")
    seen = as_on_a_gpu(monkeypatch)
    mixer(*arguments)
    assert seen == [[torch.float32] * 6]
