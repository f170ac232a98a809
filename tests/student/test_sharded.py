"""Spreading a student over processes never puts the whole of it on one device."""

import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from torch import nn

from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.sharding import fsdp as sharded
from arwkv_student.sharding.distributed_checkpoint import BackgroundCheckpoints


def test_layers_go_to_the_device_one_by_one(tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fully_shard` itself puts what it is given on the mesh's device."""
    base = open_base(str(tiny_teacher))
    model = convert(base, student_config(base, "arwkv", {"head_dim": 16})).model
    spread: list[nn.Module] = []

    def fully_shard(module: nn.Module, mesh: object) -> None:
        if module is not model:
            own = [parameter for parameter in module.parameters() if parameter.device.type == "cpu"]
            assert own
            module.to("meta")
        spread.append(module)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(sharded, "init_device_mesh", lambda *_: None)
    monkeypatch.setattr(sharded, "fully_shard", fully_shard)
    sharded.shard(model, torch.device("meta"))
    parts = [module for layer in model.model.layers for module in (layer.mlp, layer)]
    assert spread == [*parts, model.model.embed_tokens, model]


@pytest.mark.parametrize("fsdp", [False, True])
def test_trainer_leaves_placement_to_shard(
    fsdp: bool, tiny_shards: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    from arwkv_store import open_dataset
    from arwkv_student.bases.convert import untrained_student
    from arwkv_student.run.run_folder import RunFolder
    from arwkv_student.settings import TrainSettings
    from arwkv_student.training import stage_trainer
    from arwkv_student.training.shard_stages import make_trainer, plan_stage

    moved: list[nn.Module] = []
    monkeypatch.setattr(Trainer, "_move_model_to_device", lambda _, model, __: moved.append(model))
    monkeypatch.setattr(stage_trainer, "share_out", lambda *_: None)
    settings = TrainSettings(head_dim=16, steps=1, dtype="fp32", out=tmp_path, fsdp=fsdp, report_to=())
    base, datasets = open_base(str(tiny_teacher)), [open_dataset(tiny_shards, columns=["logits"])]
    model = untrained_student(base, settings, 0)
    make_trainer(model, datasets, RunFolder(tmp_path), plan_stage("distill", settings, datasets), settings, base)
    assert moved == ([] if fsdp else [model])


def test_checkpoint_is_waited_for_until_it_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A future wakes who waits for it before it calls back."""
    monkeypatch.setattr(torch.distributed, "new_group", lambda backend: None)
    checkpoints, saved, marks = BackgroundCheckpoints(), Future[None](), list[str]()
    checkpoints._pending = saved
    checkpoints.when_written(lambda: (time.sleep(0.2), marks.append("whole"))[-1])
    threading.Timer(0.05, saved.set_result, [None]).start()
    checkpoints.wait()
    assert marks == ["whole"]
