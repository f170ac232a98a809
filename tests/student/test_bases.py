import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from teacher_shards import documents, make_shards
from tiny_bases import FAMILIES, tiny_base
from torch import Tensor
from transformers import AutoModelForCausalLM

from arwkv_store import open_dataset
from arwkv_store.errors import UsageError
from arwkv_student.bases.attention import BaseAttention
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.data.shards import require_fitting_hidden_states
from arwkv_student.model.architectures import ARCHITECTURES
from arwkv_student.model.loading import load_student
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.settings import TrainSettings
from arwkv_student.training.align import align_outputs
from arwkv_student.training.pipeline import train

TOKENS = torch.arange(40).view(2, 20) * 7 % 500


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(request.param, tiny_teacher, tmp_path_factory.mktemp("bases") / request.param)


def student(folder: Path, preset: str = "arwkv", layers: tuple[int, ...] | None = None) -> ArwkvForCausalLM:
    torch.manual_seed(1)
    base = open_base(str(folder))
    options = {"head_dim": 16} if preset == "arwkv" else {}
    model = convert(base, student_config(base, preset, options, layers)).model.eval()
    for name, parameter in model.named_parameters():
        if ".time_mix." in name:
            parameter.data.add_(0.02 * torch.randn_like(parameter))
    return model


def base_forward(folder: Path) -> tuple[Tensor, list[Tensor], tuple[Tensor, ...]]:
    """Logits, attention outputs and the streams that enter each layer, of `TOKENS`."""
    model, attention = AutoModelForCausalLM.from_pretrained(folder).eval(), []
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda _block, _inputs, output: attention.append(output[0]))
    with torch.no_grad():
        outputs = model(TOKENS, output_hidden_states=True)
    return outputs.logits, attention, outputs.hidden_states[:-1]


def test_every_family_is_tested() -> None:
    assert set(FAMILIES) == set(ARCHITECTURES)


def test_contributing_shows_an_entry_of_the_table() -> None:
    document = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    shown: dict[str, Any] = {}
    exec(next(block for block in re.findall(r"```python\n(.*?)```", document, re.DOTALL) if "OLMO2" in block), shown)
    assert shown["OLMO2"] == ARCHITECTURES["olmo2"]


@torch.no_grad()
def test_a_student_without_time_mixers_is_its_base(folder: Path, tmp_path: Path) -> None:
    model, (logits, _, _) = student(folder, layers=()), base_forward(folder)
    torch.testing.assert_close(model(TOKENS).logits, logits, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(load_student(tmp_path)(TOKENS).logits, logits, rtol=0, atol=1e-5)
    given = model.generate(TOKENS, max_new_tokens=12, do_sample=False)
    base = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert torch.equal(given, base.generate(TOKENS, max_new_tokens=12, do_sample=False))


@torch.no_grad()
def test_stage_1_follows_the_stream_of_the_base(folder: Path) -> None:
    """From attention outputs and from boundaries: the same outputs of every mixer, the same outputs to learn."""
    _, attention, streams = base_forward(folder)
    model, of_base = student(folder), BaseAttention(open_base(str(folder)), [0, 1])
    rebuilt, _ = align_outputs(model, {"input_ids": TOKENS, "attention": torch.stack(attention)})
    stored, learned = align_outputs(model, {"input_ids": TOKENS, "boundaries": torch.stack(streams)}, of_base)
    torch.testing.assert_close(rebuilt, stored, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(learned, attention, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("preset", "layers"), [("arwkv", None), ("rad-rwkv7", None), ("rad-rwkv7", (0,))])
def test_students_generate_as_they_reread(preset: str, layers: tuple[int, ...] | None, folder: Path) -> None:
    model = student(folder, preset, layers)
    given = model.generate(TOKENS[:, :9], max_new_tokens=8, do_sample=False, eos_token_id=None)
    logits = model(given, use_cache=False).logits
    assert torch.equal(logits[:, 8:-1].argmax(-1), given[:, 9:])


def test_packed_samples_do_not_see_each_other_in_a_hybrid(folder: Path) -> None:
    model = student(folder, "rad-rwkv7", (1,))
    packed = model(TOKENS.view(1, -1), cu_seqlens=torch.tensor([0, 20, 40]), use_cache=False).logits
    torch.testing.assert_close(packed.view(2, 20, -1), model(TOKENS, use_cache=False).logits, rtol=1e-4, atol=1e-4)


def test_rad_rwkv7_starts_from_what_the_base_has(folder: Path) -> None:
    base, mixer = open_base(str(folder)), student_start(folder).model.layers[1].time_mix
    block = AutoModelForCausalLM.from_pretrained(folder).model.layers[1].self_attn
    for ours, theirs in (("receptance", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "o_proj")):
        for name, parameter in getattr(block, theirs).named_parameters():
            assert torch.equal(getattr(mixer, ours).get_parameter(name), parameter)
    assert (mixer.key.bias is not None) == base.shape.qkv_bias
    assert hasattr(mixer, "key_norm") == hasattr(block, "k_norm")
    if hasattr(block, "k_norm"):
        assert torch.equal(mixer.key_norm.weight, block.k_norm.weight)
        assert torch.equal(mixer.receptance_norm.weight, block.q_norm.weight)


def student_start(folder: Path, **options: Any) -> ArwkvForCausalLM:
    base = open_base(str(folder))
    return convert(base, student_config(base, "rad-rwkv7", options)).model


def test_biases_that_a_base_lacks_start_at_zero(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = tiny_base("llama", tiny_teacher, tmp_path / "llama")
    assert not student_start(folder, qkv_bias=True).model.layers[1].time_mix.key.bias.any()


def test_options_of_a_family_that_a_start_cannot_take_are_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = tiny_base("llama", tiny_teacher, tmp_path / "llama", attention_bias=True, mlp_bias=True)
    with torch.no_grad():
        logits = student(folder, layers=())(TOKENS).logits
    torch.testing.assert_close(logits, base_forward(folder)[0], rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match="attention_bias"):
        student_start(folder)
    qwen3 = tiny_base("qwen3", tiny_teacher, tmp_path / "qwen3")
    with pytest.raises(UsageError, match="qk_norm"):
        student_start(qwen3, qk_norm="none")


def test_bases_that_are_not_whole_or_known_are_named(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = tiny_base("qwen3_moe", tiny_teacher, tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    missing = "model.layers.1.mlp.experts.3.up_proj.weight"
    kept = {name: tensor for name, tensor in weights.items() if name != missing}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=f"no tensor {missing}"):
        student(folder)
    config = json.loads((folder / "config.json").read_text())
    strange = {**config, "rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}
    (folder / "config.json").write_text(json.dumps(strange))
    with pytest.raises(UsageError, match="rope type 'spiral'"):
        open_base(str(folder))
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(UsageError, match=r"model type 'bert'.*qwen3_moe"):
        open_base(str(folder))


def test_students_made_before_families_were_named_are_qwen2s(tiny_teacher: Path, tmp_path: Path) -> None:
    model = student(tiny_teacher, layers=(1,))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["time_mix"].pop("qk_norm")
    config.pop("base_model_type")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.no_grad():
        assert torch.equal(load_student(tmp_path)(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize(
    "model_type",
    ["qwen3_moe", *(pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES if name != "qwen3_moe")],
)
def test_both_stages_train_on_every_family(
    model_type: str, tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    folder = tiny_base(model_type, tiny_teacher, tmp_path / "base")
    shards = make_shards(folder, documents(tiny_corpus), tmp_path / "shards", max_length=32, limit=8)
    settings = TrainSettings(
        shards=(str(shards),),
        base=str(folder),
        out=tmp_path / "run",
        head_dim=16,
        steps=12,
        batch_size=4,
        align_lr=1e-2,
        distill_lr=3e-3,
        dtype="fp32",
        log_every=1,
        workers=0,
    )
    train(settings)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    for stage, share in (("align", 0.98), ("distill", 0.9)):
        losses = [line["loss"] for line in lines if line["stage"] == stage and "loss" in line]
        assert losses[-1] < share * losses[0], stage


def test_align_refuses_blocks_that_it_does_not_rebuild(tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    """Shards that say of the base's own weights that their blocks are others."""
    folder = tiny_base("olmo2", tiny_teacher, tmp_path / "base")
    shards = make_shards(folder, documents(tiny_corpus), tmp_path / "shards", max_length=32, limit=4)
    info = open_dataset(str(shards)).info
    parallel = info.model_copy(update={"teacher": info.teacher.model_copy(update={"block_form": "parallel"})})
    with pytest.raises(UsageError, match=r"blocks are parallel .* rebuilds post-norm blocks with base"):
        require_fitting_hidden_states(open_base(str(folder)), parallel, str(shards), [0, 1])
