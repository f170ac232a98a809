"""Stage 1's choices: when it ends, which layers, which loss; and that splitting a step changes nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from teacher_shards import documents, make_shards

from arwkv_store import create_dataset, open_dataset
from arwkv_store.errors import UsageError
from arwkv_student.run.run_folder import RunFolder
from arwkv_student.settings import TrainSettings
from arwkv_student.training.align import reached, stands_still
from arwkv_student.training.pipeline import train


def asked(shards: Path, base: Path, out: Path) -> TrainSettings:
    return TrainSettings(
        shards=(str(shards),), base=str(base), out=out, stage="align", head_dim=16, steps=4, batch_size=4,
        align_lr=3e-3, dtype="fp32", log_every=1, save_every=2, workers=0,
    )  # fmt: skip


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_stop_is_a_function_of_the_log() -> None:
    history = [{"loss": loss, "step": float(step)} for step, loss in enumerate([1.0, 0.5, 0.499, 0.498, 0.497], 1)]
    assert stands_still(history, 3)
    assert not stands_still(history, 4)
    assert not stands_still(history, None)
    assert not stands_still([*history, {"loss": 0.4, "step": 6.0}], 3)
    errors = [{"relative_error_0": 0.9, "relative_error_1": 0.9}, {"relative_error_0": 0.1, "relative_error_1": 0.3}]
    assert reached(errors, 0.3)
    assert not reached(errors, 0.2)
    assert not reached(errors, None)
    assert not reached([{"loss": 1.0}], 0.3)


def test_stage_ends_early_once_the_error_is_reached(tiny_shards: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    summary = train(replace(asked(tiny_shards, tiny_teacher, tmp_path / "run"), align_stop_error=2.0))
    assert summary["stages"]["align"]["steps"] == 1
    assert (tmp_path / "run" / "model.safetensors").exists()
    # A step of all samples, and a rate that moves nothing: every loss is the first one's.
    still = replace(asked(tiny_shards, tiny_teacher, tmp_path / "still"), batch_size=24, align_lr=1e-9)
    summary = train(replace(still, align_stop_plateau=2))
    assert summary["stages"]["align"]["steps"] == 3


def test_stage_that_had_ended_does_not_go_on(
    tiny_shards: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the checkpoint of the step that ends it and the mark that it is done."""

    class Killed(Exception):
        pass

    def killed(*_: object) -> None:
        raise Killed

    settings = replace(asked(tiny_shards, tiny_teacher, tmp_path / "run"), align_stop_error=2.0, save_every=1)
    monkeypatch.setattr(RunFolder, "finish", killed)
    with pytest.raises(Killed):
        train(settings)
    monkeypatch.undo()
    before = load_file(tmp_path / "run" / "align" / "model.safetensors")
    assert train(settings)["stages"]["align"]["steps"] == 1
    assert len(losses(tmp_path / "run")) == 1
    after = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", ["attention", "boundaries"])
def test_layers_that_keep_their_attention_need_not_be_stored(
    kind: str, tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    """Attention outputs are needed up to the last layer that mixes time, boundaries of just those that do."""
    whole = make_shards(
        tiny_teacher, documents(tiny_corpus), tmp_path / "whole", max_length=32, limit=4, hidden=kind, logits="none"
    )
    layer = 0 if kind == "attention" else 1
    name = f"hidden.{'attn' if kind == 'attention' else 'boundary'}.{layer:03d}"
    dataset = open_dataset(whole, columns=[name])
    capture = dataset.info.capture.model_copy(update={"layers": (layer,)})
    part = tmp_path / "part"
    create_dataset(part, dataset.info.model_copy(update={"capture": capture})).write_shard(0, dataset[:])
    runs = {folder.name: replace(asked(folder, tiny_teacher, tmp_path / f"run-{folder.name}"), layers=(layer,), steps=2)
            for folder in (whole, part)}  # fmt: skip
    for settings in runs.values():
        train(settings)
    assert losses(runs["part"].out) == losses(runs["whole"].out)
    with pytest.raises(UsageError, match=rf"lacks the hidden states of layers \[{1 - layer}\]"):
        train(replace(runs["part"], layers=None, out=tmp_path / "refused"))


def test_a_steps_loss_does_not_depend_on_how_it_is_split(tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    """Ragged samples: a mean of the batches' means would weigh short ones too much."""
    texts = [text[: 30 + 40 * number] for number, text in enumerate(documents(tiny_corpus)[:8])]
    shards = make_shards(tiny_teacher, texts, tmp_path / "ragged", max_length=64, samples_per_part=8)
    whole = replace(asked(shards, tiny_teacher, tmp_path / "whole"), stage="auto", batch_size=8)
    train(whole)
    train(replace(whole, out=tmp_path / "split", batch_size=2, gradient_accumulation=4))
    train(replace(whole, out=tmp_path / "packed", packing=True))
    assert losses(tmp_path / "split") == pytest.approx(losses(tmp_path / "whole"), rel=2e-5)
    assert losses(tmp_path / "packed") == pytest.approx(losses(tmp_path / "whole"), rel=2e-5)
