"""Qwen2.5's 7B and 32B by their configurations alone: what fits, and what does not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from arwkv_store import CaptureInfo, DatasetInfo, TeacherInfo, open_dataset
from arwkv_store.errors import UsageError
from arwkv_student.bases.checkpoint import BaseCheckpoint, open_base
from arwkv_student.bases.convert import student_config
from arwkv_student.data.shards import require_fitting_head, require_fitting_hidden_states, require_same_tokenizer
from arwkv_student.model.modeling import ArwkvForCausalLM

COMMON = {
    "model_type": "qwen2", "vocab_size": 152064, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "7B": COMMON
    | {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
    | {"intermediate_size": 18944},
    "32B": COMMON
    | {"hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 40, "intermediate_size": 27648},
}


@pytest.fixture(scope="module")
def bases(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseCheckpoint]:
    """Folders with a size's configuration, the tiny tokenizer, and a file of weights without any."""
    found = {}
    for size, config in SIZES.items():
        folder = tmp_path_factory.mktemp("sizes") / size
        shutil.copytree(tiny_teacher, folder)
        (folder / "config.json").write_text(json.dumps(config))
        save_file({"none": torch.zeros(1)}, folder / "model.safetensors")
        found[size] = open_base(str(folder))
    return found


def shards_of(base: BaseCheckpoint, tiny_shards: Path, **capture: Any) -> DatasetInfo:
    """What a capture from this checkpoint would say of itself."""
    own = open_dataset(tiny_shards, columns=[]).info
    teacher = TeacherInfo(
        model=base.name,
        model_type="qwen2",
        hidden_size=base.config["hidden_size"],
        num_hidden_layers=base.config["num_hidden_layers"],
        dtype="bfloat16",
        weights_hash=base.weights_hash,
    )
    told = CaptureInfo(**{**own.capture.model_dump(), **capture})
    return own.model_copy(update={"teacher": teacher, "capture": told, "vocab_size_padded": base.config["vocab_size"]})


@pytest.mark.parametrize("preset", ["arwkv", "arwkv-gate-active-mlp", "arwkv-from-32b", "rad-rwkv7"])
@pytest.mark.parametrize("size", SIZES)
def test_student_of_a_real_size_has_the_bases_shapes(size: str, preset: str, bases: dict[str, BaseCheckpoint]) -> None:
    base = bases[size]
    config = student_config(base, preset)
    with torch.device("meta"):
        model = ArwkvForCausalLM(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    width, inner = base.config["hidden_size"], base.config["intermediate_size"]
    last = f"model.layers.{base.config['num_hidden_layers'] - 1}."
    assert shapes["lm_head.weight"] == (152064, width)
    assert shapes[last + "mlp.down_proj.weight"] == (width, inner)
    key_width = base.config["num_key_value_heads"] * 128 if preset == "rad-rwkv7" else width
    assert shapes[last + "time_mix.key.weight"] == (key_width, width)
    assert config.time_mix_options.head_dim == (128 if preset == "rad-rwkv7" else 64)
    assert config.rope_parameters["rope_theta"] == 1e6


def test_7b_learns_from_a_32bs_logits_and_aligns_from_its_own_shards_alone(
    bases: dict[str, BaseCheckpoint], tiny_shards: Path
) -> None:
    student, layers = bases["7B"], range(28)
    large = shards_of(bases["32B"], tiny_shards, layers=tuple(range(64)))
    require_same_tokenizer("base 7B", student.folder, large, "large")
    require_fitting_head("--teacher-head", bases["32B"], large, "large")
    with pytest.raises(UsageError, match=r"head of .*7B is 3584 wide, the final hidden states 5120"):
        require_fitting_head("--base", student, large, "large")
    with pytest.raises(UsageError, match=r"hidden size 3584 and 28 layers, the shards' hidden states 5120 and 64"):
        require_fitting_hidden_states(student, large, "large", layers)
    own = shards_of(student, tiny_shards, layers=tuple(layers))
    require_fitting_hidden_states(student, own, "own", layers)
    with pytest.raises(UsageError, match=r"lacks the hidden states of layers \[27\]"):
        require_fitting_hidden_states(student, shards_of(student, tiny_shards, layers=tuple(range(27))), "own", layers)
