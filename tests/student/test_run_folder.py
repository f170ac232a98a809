"""A run's folder: one run at a time, and nothing is called whole before it is on the disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from arwkv_store.errors import TryAgain
from arwkv_student.run.run_folder import DONE, WHOLE, RunFolder
from arwkv_student.settings import TrainSettings
from arwkv_student.training.pipeline import train

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def settings(shards: Path, base: Path, out: Path) -> TrainSettings:
    return TrainSettings(
        shards=(str(shards),), base=str(base), out=out, stage="align", head_dim=16, steps=4, batch_size=4,
        dtype="fp32", save_every=2, workers=0,
    )  # fmt: skip


def test_second_run_in_a_folder_leaves_the_firsts_checkpoint_alone(
    tiny_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    unfinished = tmp_path / "run" / "align" / "checkpoint-2"
    unfinished.mkdir(parents=True)
    asked = settings(tiny_shards, tiny_teacher, tmp_path / "run")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run" / "run.lock")], **pipes) as first:  # type: ignore[call-overload] # by name
        first.stdout.readline()
        with pytest.raises(TryAgain, match="another run is using this folder") as refused:
            train(asked)
        assert refused.value.exit_code == 75
        assert unfinished.exists()
        first.stdin.close()
    train(asked)
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Paths that were forced onto the disk while the marker beside them was not there yet."""
    paths: set[str] = set()
    original = os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        original(descriptor)
        folder = path if path.is_dir() else path.parent
        if not any((folder / marker).exists() for marker in (WHOLE, DONE)):
            paths.add(str(path))

    monkeypatch.setattr(os, "fsync", fsync)
    return paths


def test_checkpoints_and_students_are_on_the_disk_before_they_are_called_whole(
    synced: set[str], tiny_shards: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, list[Path]] = {}
    original = RunFolder.finish

    def finish(self: RunFolder, stage: str, summary: dict[str, object]) -> None:
        kept["checkpoint"] = [file for file in self.stage(stage).glob("checkpoint-*/*") if file.name != WHOLE]
        original(self, stage, summary)

    monkeypatch.setattr(RunFolder, "finish", finish)
    run = tmp_path / "run"
    train(settings(tiny_shards, tiny_teacher, run))
    names = {file.name for file in kept["checkpoint"]}
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= names
    student = [file for file in (run / "align").iterdir() if file.name != DONE]
    assert "model.safetensors" in {file.name for file in student}
    folders = {file.parent for file in kept["checkpoint"]} | {run / "align"}
    assert {str(path) for path in (*kept["checkpoint"], *student, *folders)} <= synced
    assert not list((run / "align").glob("checkpoint-*"))
