"""Frozen weights of a base saved in bf16 are held in bf16 where products are: the same training in less memory."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from teacher_shards import make_shards
from tiny_bases import tiny_base
from transformers import AutoModelForCausalLM

from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.settings import TrainSettings
from arwkv_student.training import shard_stages
from arwkv_student.training.parameters import choose_trained, hold_frozen_in_bf16
from arwkv_student.training.pipeline import train


@pytest.fixture(scope="module")
def bf16_base(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny teacher's tokenizer, and weights in bf16."""
    folder = tiny_base("qwen2", tiny_teacher, tmp_path_factory.mktemp("base") / "bf16")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def test_only_frozen_weights_that_bf16_holds_exactly_are_held_so(bf16_base: Path, tiny_teacher: Path) -> None:
    for folder, held in ((bf16_base, torch.bfloat16), (tiny_teacher, torch.float32)):
        base = open_base(str(folder))
        model = convert(base, student_config(base, "arwkv", {"head_dim": 16}, layers=[0])).model
        choose_trained(model, "time-mix")
        hold_frozen_in_bf16(model)
        for name, parameter in model.named_parameters():
            frozen = ".layers." in name and ".time_mix." not in name and parameter.dim() == 2
            assert parameter.dtype == (held if frozen else torch.float32), name


def test_run_is_the_same_and_its_checkpoint_too(
    bf16_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both stages, on tokens alone; a bf16 base, in a file whose weights are all fp32."""

    def run(name: str) -> Path:
        for stage, start in (("align", None), ("distill", str(tmp_path / name / "align"))):
            train(
                TrainSettings(
                    shards=(str(tokens_and_logits),), base=str(bf16_base), out=tmp_path / name / stage, stage=stage,
                    head_dim=16 if start is None else None, steps=2, batch_size=4, dtype="bf16", log_every=1,
                    save_every=1, workers=0, start_from=start,
                )
            )  # fmt: skip
        return tmp_path / name

    def losses(out: Path, stage: str) -> list[float]:
        return [json.loads(line)["loss"] for line in (out / stage / "metrics.jsonl").read_text().splitlines()]

    texts = ["one text to learn from, and more of it", "another text, which is a little longer than the first"]
    tokens_and_logits = make_shards(bf16_base, texts * 4, tmp_path / "shards", max_length=24, hidden="none")
    held = run("held")
    monkeypatch.setattr(shard_stages, "hold_frozen_in_bf16", lambda _: None)
    whole = run("whole")
    base = load_file(bf16_base / "model.safetensors")
    for stage in ("align", "distill"):
        assert losses(held, stage) == losses(whole, stage)
        own, other = (load_file(out / stage / "model.safetensors") for out in (held, whole))
        assert own.keys() == other.keys()
        for name, value in own.items():
            assert value.dtype == torch.float32, name
            assert torch.equal(value, other[name]), name
        name = "model.layers.0.mlp.up_proj.weight"
        assert torch.equal(own[name], base[name].float())
