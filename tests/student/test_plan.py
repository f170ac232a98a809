"""`student plan`: its arithmetic against what is there."""

import json
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from teacher_shards import dataset_info
from test_align_tokens import most_bytes_saved, paper_loss
from test_bases import student
from tiny_bases import tiny_base
from transformers import AutoModelForCausalLM

from arwkv_store import CaptureInfo, Sample, create_dataset
from arwkv_store.errors import NotFound, UsageError
from arwkv_student.bases.attention import BaseAttention
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.model.architectures import ARCHITECTURES
from arwkv_student.planning.plan import plan, print_plan
from arwkv_student.planning.settings import PlanSettings
from arwkv_student.training.align import align_losses
from arwkv_student.training.parameters import choose_trained


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_parameters_are_the_students_own(model_type: str, tiny_teacher: Path, tmp_path: Path) -> None:
    """Of students and of the attention they replace; of a base whose weights are not there."""
    folder = tiny_base(model_type, tiny_teacher, tmp_path / "base", num_hidden_layers=3)
    base = open_base(str(folder))
    models = {
        preset: convert(base, student_config(base, preset, layers=[0, 2])).model for preset in ("arwkv", "rad-rwkv7")
    }
    blocks = BaseAttention(base, [0, 2]).blocks
    (folder / "model.safetensors").unlink()
    for preset, model in models.items():
        found = plan(PlanSettings(base=str(folder), preset=preset, layers=(0, 2)))
        assert found["parameters"]["all"] == sum(parameter.numel() for parameter in model.parameters())
        assert found["parameters"]["attention"] > 0
        assert found["base_attention_parameters"] == sum(parameter.numel() for parameter in blocks.parameters())
        for stage, trained in (("align", "time-mix"), ("distill", "preset")):
            choose_trained(model, trained)
            trains = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
            assert found["trained"][stage] == trains


@pytest.mark.parametrize("hidden", ["none", "attention"])
def test_bytes_of_shards_are_as_planned(hidden: str, tiny_teacher: Path, tmp_path: Path) -> None:
    """Values spread as attention outputs are; a few percent, because zstd does not compress all texts alike."""
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher)
    generator, samples, T, C = np.random.default_rng(0), 24, 512, 64
    capture = CaptureInfo(
        logits="none", logits_codec="none", hidden_states=hidden, layers=(0, 1) if hidden == "attention" else (),
        hidden_dtype="none" if hidden == "none" else "bf16", max_length=T,
    )  # fmt: skip
    ids = generator.zipf(1.3, (samples, T)).clip(0, 499).astype(np.int32)
    writer = create_dataset(tmp_path / "shards", dataset_info(tiny_teacher, model, {"a": 499}, capture, ids, samples))

    def states() -> np.ndarray[tuple[int, int], np.dtype[ml_dtypes.bfloat16]]:
        return generator.normal(size=(T, C)).astype(ml_dtypes.bfloat16)

    names = ("attn.0", "attn.1") if hidden == "attention" else ()
    rows = [
        Sample(row, ids[row], np.ones(T, bool), hidden={name: states() for name in names}) for row in range(samples)
    ]
    writer.write_shard(0, rows)
    stored = sum(file.stat().st_size for file in (tmp_path / "shards/shards").iterdir())
    tokens = samples * T
    found = plan(PlanSettings(base=str(tiny_teacher), context=T, align_tokens=tokens, head_dim=16))
    planned = found["align"]["tokens" if hidden == "none" else "stored"]["stored_bytes"]
    assert stored == pytest.approx(planned, rel=0.08)


@pytest.mark.parametrize("preset", ["arwkv", "rad-rwkv7"])
def test_activations_are_as_planned(preset: str, tiny_teacher: Path, tmp_path: Path) -> None:
    """With products in fp32; a fifth, because autograd also names weights among what it keeps."""
    folder = tiny_base("qwen2", tiny_teacher, tmp_path / "base", hidden_size=128, intermediate_size=512)
    model = student(folder, preset)
    choose_trained(model, "time-mix")
    attention = BaseAttention(open_base(str(folder)), [0, 1])
    ids = (torch.arange(4 * 256).view(4, 256) * 7) % 500
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    kept = most_bytes_saved(lambda: align_losses(model, batch, attention, paper_loss(batch)))
    head_dim = 16 if preset == "arwkv" else None
    settings = PlanSettings(
        base=str(folder), preset=preset, head_dim=head_dim, context=256, batch_size=4, dtype="fp32"
    )  # fmt: skip
    assert kept == pytest.approx(plan(settings)["align"]["tokens"]["device_bytes"]["activations"], rel=0.2)


def test_cheaper_way_of_stage_1_is_named(tiny_teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = PlanSettings(base=str(tiny_teacher), head_dim=16)
    found = plan(settings)
    assert found["align"]["cheaper"] == "tokens"
    many = plan(replace(settings, students=1000, disk_mb_per_s=1e9))
    assert many["align"]["cheaper"] == "stored"
    assert found["align"]["stored"]["hours_of_a_student"] > many["align"]["stored"]["hours_of_a_student"]
    print_plan(found)
    assert "cheaper for stage align: from tokens" in capsys.readouterr().out
    assert "align" not in plan(replace(settings, layers="none"))
    assert json.loads(json.dumps(found)) == found


def test_base_that_is_not_there_is_named(tiny_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--base is missing"):
        plan(PlanSettings())
    with pytest.raises(NotFound, match=r"no Qwen/Qwen2.5-0B from the Hub"):
        plan(PlanSettings(base="Qwen2.5-0B"))
    with pytest.raises(NotFound, match=r"no config\.json"):
        plan(PlanSettings(base=str(tmp_path)))
    with pytest.raises(UsageError, match="--utilization 2"):
        PlanSettings(base="x", utilization=2)
    with pytest.raises(UsageError, match="--processes 0: give at least 1"):
        PlanSettings(base="x", processes=0)
