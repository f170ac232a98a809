import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from arwkv_student.model.cache import ArwkvCache
from arwkv_student.model.configuration import ATTENTION, TIME_MIX, ArwkvConfig
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.model.time_mix_options import PRESETS, BaseShape, options_as_dict, preset_options

SHAPE = BaseShape(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
VARIANTS = [(preset, {}) for preset in PRESETS] + [
    ("arwkv", {"head_dim": 32, "output_norm": "group", "rope": True, "gate": "low-rank"}),
    ("rad-rwkv7", {"token_shift": True, "bonus": True, "value_residual": "none"}),
]


def student(preset: str = "arwkv", attention_layers: tuple[int, ...] = (), **overrides: object) -> ArwkvForCausalLM:
    """A student whose every weight has been moved off its start, so that no part is silent."""
    torch.manual_seed(0)
    options = preset_options(preset, SHAPE, overrides)
    config = ArwkvConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=[ATTENTION if layer in attention_layers else TIME_MIX for layer in range(3)],
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        preset=preset,
        time_mix=options_as_dict(options),
    )
    model = ArwkvForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def tokens_BT(batch: int = 2, length: int = 20) -> torch.Tensor:
    return torch.randint(2, 128, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=VARIANTS, ids=lambda variant: "-".join([variant[0], *variant[1]]))
def model(request: pytest.FixtureRequest) -> ArwkvForCausalLM:
    preset, overrides = request.param
    return student(preset, **overrides)


def test_saved_student_reloads_bit_identical(model: ArwkvForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert torch.equal(model(tokens_BT()).logits, loaded(tokens_BT()).logits)


def test_recurrent_generation_equals_rereading_the_whole_text(model: ArwkvForCausalLM) -> None:
    prompt = tokens_BT()
    mask = torch.ones_like(prompt)
    cached = model.generate(prompt, attention_mask=mask, max_new_tokens=6, do_sample=False)
    reread = model.generate(prompt, attention_mask=mask, max_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(cached, reread)


def test_left_padding_does_not_change_what_follows(model: ArwkvForCausalLM) -> None:
    prompt = tokens_BT(1)
    padded = torch.cat([torch.full((1, 5), 7), prompt], dim=1)
    mask = torch.cat([torch.zeros(1, 5), torch.ones(1, 20)], dim=1).long()
    expected = model(prompt).logits
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 5:], expected, rtol=1e-4, atol=1e-4)
    alone = model.generate(prompt, attention_mask=mask[:, 5:], max_new_tokens=6, do_sample=False)
    beside = model.generate(padded, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(alone[:, 20:], beside[:, 25:])


def test_prefill_in_chunks_equals_prefill_at_once(model: ArwkvForCausalLM) -> None:
    tokens = tokens_BT()
    cache = ArwkvCache(model.config)
    pieces = [model(piece, past_key_values=cache, use_cache=True).logits for piece in tokens.split([7, 1, 12], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens).logits, rtol=1e-4, atol=1e-4)


def test_right_padding_leaves_the_state_as_it_was(model: ArwkvForCausalLM) -> None:
    tokens = tokens_BT(1)
    padded = torch.cat([tokens, torch.full((1, 4), 7)], dim=1)
    mask = torch.cat([torch.ones(1, 20), torch.zeros(1, 4)], dim=1).long()
    plain = model(tokens, use_cache=True).past_key_values
    behind = model(padded, attention_mask=mask, use_cache=True).past_key_values
    for layer in range(3):
        for a, b in zip(plain.layers[layer].state, behind.layers[layer].state, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_packed_documents_do_not_see_each_other(model: ArwkvForCausalLM) -> None:
    first, second = tokens_BT(2, 9)
    packed = torch.cat([first[:6], second])[None]
    logits = model(packed, cu_seqlens=torch.tensor([0, 6, 15]), use_cache=False).logits[0]
    torch.testing.assert_close(logits[:6], model(first[None, :6]).logits[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[6:], model(second[None]).logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("preset", ["arwkv", "rad-rwkv7"])
def test_packed_documents_do_not_see_each_other_in_a_hybrid(preset: str) -> None:
    test_packed_documents_do_not_see_each_other(student(preset, attention_layers=(0, 2)))


@pytest.mark.parametrize("attention_layers", [(), (0,), (1,)])
def test_every_parameter_of_a_hybrid_takes_part(attention_layers: tuple[int, ...]) -> None:
    model = student("arwkv-gate-active-mlp", attention_layers).train()
    model(tokens_BT(), labels=tokens_BT(), use_cache=False).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_state_can_be_saved_and_restored(model: ArwkvForCausalLM, tmp_path: Path) -> None:
    tokens = tokens_BT()
    cache = model(tokens[:, :12], use_cache=True).past_key_values
    torch.save(cache.state_dict(), tmp_path / "state.pt")
    restored = ArwkvCache.from_state_dict(model.config, torch.load(tmp_path / "state.pt"))
    expected = model(tokens[:, 12:], past_key_values=cache, use_cache=True).logits
    assert torch.equal(model(tokens[:, 12:], past_key_values=restored, use_cache=True).logits, expected)


def test_cache_does_not_grow_with_the_text() -> None:
    model = student()

    def size_bytes(length: int) -> int:
        cache = model(tokens_BT(1, length), use_cache=True).past_key_values
        return sum(x.numel() * x.element_size() for layer in cache.layers for x in layer.state)

    assert size_bytes(4) == size_bytes(64)


@pytest.mark.parametrize("preset", ["arwkv", "rad-rwkv7"])
def test_hybrid_generates_as_it_rereads(preset: str) -> None:
    model = student(preset, attention_layers=(1,))
    prompt = tokens_BT()
    padded = torch.cat([torch.full((2, 3), 7), prompt], dim=1)
    mask = torch.cat([torch.zeros(2, 3), torch.ones(2, 20)], dim=1).long()
    expected = model.generate(prompt, attention_mask=mask[:, 3:], max_new_tokens=5, do_sample=False, use_cache=False)
    cached = model.generate(padded, attention_mask=mask, max_new_tokens=5, do_sample=False)
    assert torch.equal(expected[:, 20:], cached[:, 23:])


def test_beam_search_carries_each_beams_state() -> None:
    model = student()
    prompt = tokens_BT(1, 8)
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    assert torch.equal(model.generate(prompt, **options), model.generate(prompt, use_cache=False, **options))


def test_value_of_layer_0_is_not_changed_in_place() -> None:
    model = student()
    values = []
    model.model.layers[0].time_mix.value.register_forward_hook(
        lambda _m, _i, value: values.append((value, value.clone()))
    )
    model(tokens_BT())
    assert torch.equal(*values[0])


def test_gradients_are_the_same_with_checkpointing() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = student("rad-rwkv7").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(tokens_BT(), labels=tokens_BT(), use_cache=False).loss.backward()
        gradients.append({name: x.grad for name, x in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6, msg=name)


def test_labels_are_shifted_once() -> None:
    model = student()
    tokens = tokens_BT()
    logits = model(tokens).logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
    torch.testing.assert_close(model(tokens, labels=tokens).loss, expected)


def test_decay_stays_fp32_under_autocast() -> None:
    model = student()
    seen = []
    model.model.layers[0].time_mix.decay.register_forward_hook(lambda _m, _i, decay: seen.append(decay.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(tokens_BT())
    assert seen == [torch.float32]


def test_decays_bias_is_not_rounded_in_a_student_loaded_in_bf16(tmp_path: Path) -> None:
    whole = student()
    whole.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for own, kept in zip(whole.model.layers, loaded.model.layers, strict=True):
        assert torch.equal(own.time_mix.decay.bias, kept.time_mix.decay.bias)
        assert kept.time_mix.key.weight.dtype == torch.bfloat16
    assert loaded(tokens_BT()).logits.dtype == torch.bfloat16


def test_import_registers_the_student_with_transformers(python_with_transformers: list[str]) -> None:
    code = "import arwkv_student; from transformers import AutoConfig; AutoConfig.for_model('arwkv')"
    subprocess.run([*python_with_transformers, "-c", code], check=True)


def test_options_that_cannot_be_are_refused() -> None:
    options = preset_options("rad-rwkv7", SHAPE)
    with pytest.raises(Exception, match="num_key_value_heads 3 does not divide the 4 heads"):
        replace(options, num_key_value_heads=3)
    with pytest.raises(Exception, match="heads of 64 do not divide the base's hidden size 96"):
        preset_options("arwkv", replace(SHAPE, hidden_size=96))
    with pytest.raises(Exception, match="gate 'loud' is unknown"):
        preset_options("arwkv", SHAPE, {"gate": "loud"})
