import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_bases import tiny_base
from transformers import Qwen2Config, Qwen2ForCausalLM

from arwkv_store.errors import NotFound, UsageError
from arwkv_store.format.weights import hash_of_weights
from arwkv_student.bases import remembered_hash
from arwkv_student.bases.attention import BaseAttention
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config


def without_attention(teacher: Path, out: Path) -> Path:
    """The same checkpoint with every attention tensor taken out of its file."""
    shutil.copytree(teacher, out)
    kept = {name: x for name, x in load_file(out / "model.safetensors").items() if ".self_attn." not in name}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_arwkv_reads_no_attention_weight(tiny_teacher: Path, tmp_path: Path) -> None:
    base = open_base(str(without_attention(tiny_teacher, tmp_path / "base")))
    conversion = convert(base, student_config(base, "arwkv", {"head_dim": 16}))
    assert not [name for name in conversion.loaded if ".self_attn." in name]
    assert not [name for name, _ in conversion.model.named_parameters() if ".self_attn." in name]


def test_everything_else_is_the_bases(tiny_teacher: Path) -> None:
    base = open_base(str(tiny_teacher))
    student = convert(base, student_config(base, "arwkv", {"head_dim": 16})).model.state_dict()
    for name, tensor in load_file(tiny_teacher / "model.safetensors").items():
        if ".self_attn." not in name:
            assert torch.equal(student[name], tensor), name


def test_rad_rwkv7_starts_from_the_bases_projections(tiny_teacher: Path) -> None:
    base = open_base(str(tiny_teacher))
    student = convert(base, student_config(base, "rad-rwkv7")).model.state_dict()
    teacher = load_file(tiny_teacher / "model.safetensors")
    for theirs, ours in (("q_proj", "receptance"), ("k_proj", "key"), ("v_proj", "value"), ("o_proj", "output")):
        for kind in ("weight", "bias") if theirs != "o_proj" else ("weight",):
            own = student[f"model.layers.1.time_mix.{ours}.{kind}"]
            assert torch.equal(own, teacher[f"model.layers.1.self_attn.{theirs}.{kind}"])


def test_hybrid_that_keeps_most_layers_speaks_like_the_teacher_there(tiny_teacher: Path) -> None:
    base = open_base(str(tiny_teacher))
    student = convert(base, student_config(base, "arwkv", {"head_dim": 16}, layers=[1])).model.eval()
    teacher = Qwen2ForCausalLM.from_pretrained(tiny_teacher).eval()
    tokens = torch.arange(12)[None]
    own = student.model(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states
    theirs = teacher(tokens, output_hidden_states=True).hidden_states
    torch.testing.assert_close(own[1], theirs[1])


def test_boundaries_keep_to_the_sliding_window_of_the_base(tiny_teacher: Path, tmp_path: Path) -> None:
    config = Qwen2Config.from_pretrained(
        tiny_teacher, use_sliding_window=True, sliding_window=5, layer_types=["full_attention", "sliding_attention"]
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    teacher, seen = Qwen2ForCausalLM.from_pretrained(tmp_path).eval(), {}
    for layer, block in enumerate(teacher.model.layers):
        block.self_attn.register_forward_hook(lambda _block, _inputs, y, layer=layer: seen.update({layer: y[0]}))
    streams = teacher(torch.arange(23)[None], output_hidden_states=True).hidden_states
    attention = BaseAttention(open_base(str(tmp_path)), [0, 1])
    assert attention.windows == [None, 5]
    for layer in (0, 1):
        torch.testing.assert_close(attention(layer, streams[layer]), seen[layer])


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_kept_attention_turns_positions_as_the_base_does(key: str, tiny_teacher: Path, tmp_path: Path) -> None:
    """YaRN, in the spelling of older and of newer configurations."""
    folder = tmp_path / "yarn"
    shutil.copytree(tiny_teacher, folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_parameters", None)
    scaling = {"factor": 4.0, "original_max_position_embeddings": 512, key: "yarn"}
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 1e4, "rope_scaling": scaling}))
    base = open_base(str(folder))
    student = convert(base, student_config(base, "rad-rwkv7", layers=[1])).model.eval()
    teacher = Qwen2ForCausalLM.from_pretrained(folder).eval()
    assert torch.equal(student.model.rotary_emb.inv_freq, teacher.model.rotary_emb.inv_freq)
    tokens = torch.arange(12)[None]
    own = student.model(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states
    theirs = teacher(tokens, output_hidden_states=True).hidden_states
    torch.testing.assert_close(own[1], theirs[1])


@pytest.mark.parametrize("rows", [151_936, 152_064])
def test_padded_and_tied_heads_convert(rows: int, tmp_path: Path) -> None:
    config = Qwen2Config(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=rows == 151_936,
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    base = open_base(str(tmp_path))
    student = convert(base, student_config(base, "arwkv", {"head_dim": 8})).model
    assert student.lm_head.weight.shape == (rows, 16)
    tied = student.lm_head.weight is student.model.embed_tokens.weight
    assert tied == config.tie_word_embeddings
    student.save_pretrained(tmp_path / "student")
    assert torch.equal(type(student).from_pretrained(tmp_path / "student").lm_head.weight, student.lm_head.weight)


def test_base_that_cannot_be_is_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such folder"):
        open_base("no/such-model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UsageError, match="model type 'bert'"):
        open_base(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(NotFound, match=r"no model\.safetensors"):
        open_base(str(tmp_path))
    base = open_base(str(without_attention(tiny_teacher, tmp_path / "base")))
    with pytest.raises(UsageError, match=r"no tensor model\.layers\.0\.self_attn\.q_proj\.weight"):
        convert(base, student_config(base, "rad-rwkv7"))
    with pytest.raises(UsageError, match=r"layers \[2\]: base .* has layers 0 to 1"):
        student_config(base, "arwkv", {"head_dim": 16}, layers=[2])
    with pytest.raises(UsageError, match="init_from_teacher"):
        student_config(base, "arwkv", {"head_dim": 16, "init_from_teacher": True})


@pytest.mark.parametrize("preset", ["arwkv", "arwkv-gate-active-mlp", "rad-rwkv7"])
@pytest.mark.parametrize("model_type", ["qwen3", "qwen3_moe"])
def test_every_value_of_a_fresh_student_is_set(
    model_type: str, preset: str, tiny_teacher: Path, tmp_path: Path
) -> None:
    """Its memory is not initialized before; here it is full of NaN. The last layer keeps its attention."""
    base = open_base(str(tiny_base(model_type, tiny_teacher, tmp_path / "base", tie_word_embeddings=True)))
    torch.use_deterministic_algorithms(True)
    try:
        student = convert(base, student_config(base, preset, {}, layers=[0])).model
    finally:
        torch.use_deterministic_algorithms(False)
    for name, tensor in [*student.named_parameters(), *student.named_buffers()]:
        assert not tensor.is_meta, name
        assert torch.isfinite(tensor).all(), name
    assert student.lm_head.weight is student.model.embed_tokens.weight


def test_only_time_mixers_are_drawn(tiny_teacher: Path) -> None:
    """Nothing is drawn for weights that the base overwrites."""
    base = open_base(str(tiny_teacher))
    config = student_config(base, "arwkv", {"head_dim": 16})
    torch.manual_seed(3)
    mixers = [block.time_mix for block in convert(base, config).model.model.layers]
    torch.manual_seed(3)
    for mixer in mixers:
        drawn = copy.deepcopy(mixer)
        drawn.initialize()
        for name, value in drawn.state_dict().items():
            assert torch.equal(mixer.state_dict()[name], value), name


def test_hash_of_weights_is_remembered_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARWKV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered_hash, "LEAST_BYTES", 0)
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"one")
    first = remembered_hash.remembered_hash_of_weights(folder)
    assert first == hash_of_weights(folder)
    with monkeypatch.context() as patched:
        patched.setattr(remembered_hash, "hash_of_weights", lambda _: pytest.fail("hashed again"))
        assert remembered_hash.remembered_hash_of_weights(folder) == first
    (folder / "model.safetensors").write_bytes(b"two")
    assert remembered_hash.remembered_hash_of_weights(folder) == hash_of_weights(folder) != first
    monkeypatch.setenv("ARWKV_CACHE", "/proc/nowhere")
    assert remembered_hash.remembered_hash_of_weights(folder) == hash_of_weights(folder)
