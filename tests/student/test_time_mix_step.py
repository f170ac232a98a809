import pytest
import torch
from test_model import VARIANTS, student, tokens_BT

import arwkv_student.model.time_mix as time_mix
from arwkv_student.model.cpu_step import can_step
from arwkv_student.model.modeling import ArwkvForCausalLM


def decoded(model: ArwkvForCausalLM, tokens: torch.Tensor, bf16: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits of the last 5 tokens, read one by one after the others, and the state after them."""
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        cache = model.prefill(tokens[:, :-5])
        logits = [
            model(token_B1, past_key_values=cache, use_cache=True).logits for token_B1 in tokens[:, -5:].split(1, 1)
        ]
    return torch.cat(logits, dim=1), cache.state_dict()


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("attention_layers", [(), (0,)], ids=["", "hybrid"])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join([variant[0], *variant[1]]))
def test_one_compiled_step_is_the_mixers_own(
    variant: tuple[str, dict[str, object]],
    attention_layers: tuple[int, ...],
    bf16: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    preset, overrides = variant
    model = student(preset, attention_layers, **overrides)
    logits, state = decoded(model, tokens_BT(3, 14), bf16)
    monkeypatch.setattr(time_mix, "can_step", lambda x_BTC: False)
    expected_logits, expected_state = decoded(model, tokens_BT(3, 14), bf16)
    bound = 2e-2 if bf16 else 1e-4
    torch.testing.assert_close(logits, expected_logits, rtol=bound, atol=bound)
    for name, expected in expected_state.items():
        torch.testing.assert_close(state[name], expected, rtol=bound, atol=bound, msg=name)


def test_step_is_for_decoding_alone() -> None:
    x_BTC = torch.randn(2, 1, 64)
    assert not can_step(x_BTC)
    with torch.no_grad():
        assert can_step(x_BTC)
        assert not can_step(torch.randn(2, 2, 64))
        assert not can_step(x_BTC.double())


@pytest.mark.parametrize("preset", ["arwkv", "rad-rwkv7"])
def test_step_by_slots_changes_those_states_alone(preset: str) -> None:
    """The states lie apart, as in a server's cache."""
    mixer = student(preset).model.layers[0].time_mix
    H, D = mixer.options.num_heads, mixer.options.head_dim
    cache = torch.randn(5, H * D * D + 7)
    states, slots = cache[:, : H * D * D].view(5, H, D, D), torch.tensor([3, 0, 4])
    with torch.no_grad():
        projected = mixer.project((torch.randn(3, 1, 64),) * 6, is_first=True)
        turned = (torch.rand(3, 1, D), torch.rand(3, 1, D))
        before = cache.clone()
        expected_y, expected = mixer.one_token(projected, projected.v, turned, states[slots])
        torch.testing.assert_close(cache, before, rtol=0, atol=0)
        y_B1W, after = mixer.one_token(projected, projected.v, turned, states, slots)
    torch.testing.assert_close(y_B1W, expected_y)
    torch.testing.assert_close(after[slots], expected)
    before[slots, : H * D * D] = expected.flatten(1)
    torch.testing.assert_close(cache, before)
