"""`--ema`: the average of the weights, in a run and by itself."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from arwkv_store import open_dataset
from arwkv_store.errors import UsageError
from arwkv_student.evaluation.fidelity import evaluate
from arwkv_student.model.loading import load_student
from arwkv_student.optimizers.weight_average import FILE, WeightAverage
from arwkv_student.settings import TrainSettings
from arwkv_student.training.pipeline import train
from student_faults import train_until


def test_average_follows_the_weights_and_stands_in_for_them(tmp_path: Path) -> None:
    model = nn.Linear(1, 2, bias=False)
    model.weight.data[:] = torch.tensor([[0.0], [1.0]])
    average = WeightAverage(model, 0.2)
    for step in (1, 2, 3):
        model.weight.data += 1
        average.update()
        if step == 2:
            average.save(tmp_path)
    # d is (1 + 1) / (10 + 1) at first, then 0.2: 9/11, 0.2·9/11 + 0.8·2, and so on.
    expected = 0.2 * (0.2 * 9 / 11 + 0.8 * 2) + 0.8 * 3
    with average.in_place():
        torch.testing.assert_close(model.weight.detach(), torch.tensor([[expected], [expected + 1]]))
    assert model.weight.flatten().tolist() == [3, 4]
    again = WeightAverage(model, 0.2)
    again.load(tmp_path, 2)
    again.update()
    again.keep()
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[expected], [expected + 1]]))


def test_average_of_sharded_weights_is_refused() -> None:
    with pytest.raises(UsageError, match="--ema --fsdp"):
        TrainSettings(ema=0.9, fsdp=True)


@pytest.mark.slow
def test_run_saves_and_evaluates_its_average_and_continues_bit_for_bit(
    tiny_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    whole = TrainSettings(
        shards=(str(tiny_shards),), base=str(tiny_teacher), out=tmp_path / "whole", stage="distill", head_dim=16,
        steps=4, batch_size=4, distill_lr=3e-3, dtype="fp32", save_every=2, workers=0, ema=0.9,
        eval_shards=str(tiny_shards),
    )  # fmt: skip
    found = train(whole)["stages"]["distill"]["eval"]
    stopped = replace(whole, out=tmp_path / "stopped")
    train_until(stopped, 3)
    assert load_file(stopped.out / "distill/checkpoint-2" / FILE)
    train(stopped)
    assert (whole.out / "model.safetensors").read_bytes() == (stopped.out / "model.safetensors").read_bytes()
    figures = evaluate(load_student(whole.out), open_dataset(tiny_shards), batch_size=4)
    assert figures["kl"] == pytest.approx(found["kl"], rel=1e-5)
    last = replace(whole, out=tmp_path / "last", ema=None)
    assert train(last)["stages"]["distill"]["eval"]["kl"] != pytest.approx(found["kl"], rel=1e-3)
