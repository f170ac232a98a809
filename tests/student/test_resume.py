"""20 steps are 10, a SIGKILL, and 10: losses, weights, optimizer and random state, to the last bit."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

LAUNCH = """
import os, signal, sys
kill_at = int(sys.argv[1])
from arwkv_student.cli import main
from arwkv_student.run.durable import write_json
from arwkv_student.run.run_folder import DONE, RunFolder
from arwkv_student.training.run_log import RunLog
def kill(self, args, state, control, **_):
    if kill_at and state.global_step == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
RunLog.on_step_begin = kill
# Checkpoints stay, to be compared.
RunFolder.finish = lambda self, stage, summary: write_json(self.stage(stage) / DONE, summary)
main(sys.argv[2:])
"""


def run(shards: Path, base: Path, out: Path, stage: str, kill_at: int = 0) -> int:
    command = [sys.executable, "-c", LAUNCH, str(kill_at), "train", "--shards", str(shards), "--base", str(base)]
    command += ["--out", str(out), "--stage", stage, "--head-dim", "16", "--steps", "20", "--batch-size", "2"]
    command += ["--dtype", "fp32", "--log-every", "1", "--save-every", "10", "--workers", "1", "--align-lr", "3e-3"]
    command += ["--distill-lr", "3e-3", "--context", "16", "48", "--packing"]
    return subprocess.run(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode


def state(out: Path, stage: str) -> dict[str, Any]:
    folder = out / stage / "checkpoint-20"
    files = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
    return {
        "losses": [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()],
        "weights": load_file(out / "model.safetensors"),
        # Our own files, with numpy's random state in them.
        **{file: torch.load(folder / file, weights_only=False) for file in files},
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool((one == other).all()) if hasattr(one, "all") else one == other


@pytest.mark.crash
@pytest.mark.parametrize("stage", ["align", "distill"])
def test_twenty_steps_are_ten_a_kill_and_ten(stage: str, tiny_shards: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    assert run(tiny_shards, tiny_teacher, tmp_path / "whole", stage) == 0
    killed = tmp_path / "killed"
    assert run(tiny_shards, tiny_teacher, killed, stage, kill_at=12) == -signal.SIGKILL
    assert not (killed / "model.safetensors").exists()
    assert run(tiny_shards, tiny_teacher, killed, stage) == 0
    whole, continued = state(tmp_path / "whole", stage), state(killed, stage)
    assert len(whole["losses"]) == 20
    assert len(whole["optimizer.pt"]["state"]) > 10
    for part in whole:
        assert same(whole[part], continued[part]), part
    assert not same(whole["rng_state.pth"]["cpu"], torch.zeros_like(whole["rng_state.pth"]["cpu"]))
