"""Stage 3 on two gloo processes: the same losses and references as on one, sharded or not."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_tuning import data, student  # noqa: F401 -- fixtures

pytestmark = pytest.mark.slow
STEPS = 4


def tune(stage: str, student: Path, data: Path, out: Path, processes: int, *flags: str) -> None:  # noqa: F811
    """Run the stage on `processes` CPU processes, together 4 rows a step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "arwkv_student.cli", "train", "--stage", stage, "--start-from", str(student)]
    command += ["--data", str(data / f"{stage}.jsonl"), "--out", str(out), "--reference", str(out / "reference")]
    command += ["--steps", str(STEPS), "--batch-size", str(4 // processes), "--log-every", "1", "--save-every", "2"]
    command += [
        "--sft-lr",
        "3e-3",
        "--dpo-lr",
        "1e-3",
        "--max-length",
        "96",
        "--dtype",
        "fp32",
        "--workers",
        "0",
        *flags,
    ]
    started = []
    for rank in range(processes):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if processes > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    ended = [(process.communicate()[1], process.returncode) for process in started]
    assert all(code == 0 for _, code in ended), "\n".join(stderr for stderr, _ in ended)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_two_processes_tune_as_one(stage: str, student: Path, data: Path, tmp_path: Path) -> None:  # noqa: F811
    tune(stage, student, data, tmp_path / "one", 1)
    expected = losses(tmp_path / "one")
    assert len(expected) == STEPS
    for name, flags in (("ddp", ()), ("fsdp", ("--fsdp",))):
        tune(stage, student, data, tmp_path / name, 2, *flags)
        assert losses(tmp_path / name) == pytest.approx(expected, rel=1e-3)
        weights = [load_file(run / "model.safetensors") for run in (tmp_path / "one", tmp_path / name)]
        assert weights[0].keys() == weights[1].keys()
