"""A run goes on with the samples that it began with while its datasets grow, in a folder and over HTTP."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from arwkv_store import Dataset, create_dataset, open_dataset
from arwkv_store.commands.verify import set_aside
from arwkv_store.errors import ConfigurationDiffers
from arwkv_student.settings import TrainSettings
from arwkv_student.training.pipeline import train
from store_server import served
from student_faults import train_until


def write_parts(whole: Dataset, out: Path, parts: list[int]) -> Path:
    """These parts of a dataset, of four samples each."""
    writer = create_dataset(out, whole.info)
    for part in parts:
        writer.write_shard(part, whole[4 * part : 4 * part + 4])
    return out


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("stage", "over_http"), [("align", False), pytest.param("auto", True, marks=pytest.mark.slow)])
def test_run_goes_on_with_what_it_began_with(
    stage: Literal["align", "auto"],
    over_http: bool,
    tiny_shards: Path,
    tiny_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A part that was missing in between is among the new ones."""
    monkeypatch.setenv("ARWKV_CACHE", str(tmp_path / "cache"))
    whole, begun = open_dataset(tiny_shards), [0, 2]
    shards = write_parts(whole, tmp_path / "shards", begun)
    steady = TrainSettings(
        shards=(str(write_parts(whole, tmp_path / "steady", begun)),), base=str(tiny_teacher), out=tmp_path / "whole",
        stage=stage, head_dim=16, steps=4, batch_size=3, dtype="fp32", log_every=1, save_every=2, workers=0,
        report_to=(),
    )  # fmt: skip
    train(steady)
    with served(shards) as service:
        run = replace(steady, shards=(service.uri if over_http else str(shards),), out=tmp_path / "run")
        train_until(run, 3)
        write_parts(whole, shards, [1, 3])
        assert "has grown" not in capfd.readouterr().err
        train(run)
        said = capfd.readouterr().err
        assert "run.json began with 2 parts of" in said
        assert "(8 samples), which has grown to 16; it goes on with those; for all, begin a new run" in said
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "run")) == (4 if stage == "align" else 8)


def test_shrunk_and_changed_shards_are_refused_by_name(tiny_shards: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    whole = open_dataset(tiny_shards)
    shards = write_parts(whole, tmp_path / "shards", [0, 1])
    run = TrainSettings(
        shards=(str(shards),), base=str(tiny_teacher), out=tmp_path / "run", head_dim=16, steps=1, batch_size=2,
        dtype="fp32", workers=0, report_to=(), stage="align",
    )  # fmt: skip
    train(run)
    set_aside(shards, 1)
    write_parts(whole, shards, [2, 3])
    with pytest.raises(
        ConfigurationDiffers, match=r"run.json began with 2 parts of .*/shards \(8 samples\); 1 are missing .* is 1;"
    ):
        train(run)
    create_dataset(shards, whole.info).write_shard(1, whole[8:11])
    with pytest.raises(ConfigurationDiffers, match=r"they hold other samples now; restore the dataset, or"):
        train(run)
    older = json.loads((tmp_path / "run" / "run.json").read_text())
    for name in ("parts", "lengths"):
        del older[f"shards_0_{name}"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(older))
    with pytest.raises(ConfigurationDiffers, match=r"shards_0_samples: 8 there, 15 asked"):
        train(run)
    shutil.rmtree(shards)
    write_parts(whole, shards, [0, 1])
    assert train(run)["stages"]["align"]["steps"] == 1
