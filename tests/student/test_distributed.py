"""Two gloo processes: the same losses as one, and a run that changes its world size sees the same samples."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from teacher_shards import make_shards
from tiny_bases import tiny_base
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForCausalLM, AutoTokenizer

from arwkv_student import cli
from arwkv_student.settings import TrainSettings
from arwkv_student.training.pipeline import train as train_here
from student_faults import train_until

STEPS = 6


def train(
    shards: Path,
    base: Path,
    out: Path,
    processes: int,
    *flags: str,
    batches: int = 1,
    stop_after: int | None = None,
    python: Sequence[str] = (sys.executable,),
) -> None:
    """Run `student train` on `processes` CPU processes, together 4 samples a step; optionally die after some steps."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*python, "-c", LAUNCH, str(stop_after or 0), "train"]
    command += ["--shards", str(shards), "--base", str(base), "--out", str(out), "--dtype", "fp32"]
    command += [] if "transformer" in flags else ["--head-dim", "16"]
    command += ["--steps", str(STEPS), "--log-every", "1", "--save-every", "2", "--workers", "0"]
    command += ["--batch-size", str(4 // processes // batches), "--gradient-accumulation", str(batches)]
    command += ["--align-lr", "3e-3", "--distill-lr", "3e-3", *flags]
    started = []
    for rank in range(processes):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if processes > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, env=environment, text=True, **pipes))
    ended = [(*process.communicate(), process.returncode) for process in started]
    for rank, (stdout, stderr, code) in enumerate(ended):
        assert code == (9 if stop_after else 0), stderr
        assert ("student: " in stdout) == (rank == 0 and not stop_after)


LAUNCH = """
import os, sys
stop_after = int(sys.argv[1])
from arwkv_student.cli import main
if os.environ.get("RANK") == "1" and "--fsdp" in sys.argv:
    from arwkv_student.training import shard_stages
    del shard_stages.untrained_student, shard_stages.load_student, shard_stages.load_any_student  # process 0 reads
from arwkv_student.training.run_log import RunLog
def on_substep(self, args, state, control, **_):
    if stop_after and state.global_step == stop_after:
        os._exit(9)
RunLog.on_step_begin = on_substep
main(sys.argv[2:])
"""


def losses(run: Path) -> dict[tuple[str, int], float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figures = {(line["stage"], line["step"]): line["loss"] for line in lines if "loss" in line}
    held_out = {(line["stage"] + " eval", line["step"]): line["eval_kl"] for line in lines if "eval_kl" in line}
    return figures | held_out


def test_two_sharded_processes_distill_as_one(
    python_with_transformers: list[str], tiny_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """The quick one of these: the single process is this one, and the held-out figures are those of the end."""
    stage = ("--stage", "distill", "--eval-shards", str(tiny_shards))
    train(tiny_shards, tiny_teacher, tmp_path / "two", 2, *stage, "--fsdp", python=python_with_transformers)
    settings = TrainSettings(
        shards=(str(tiny_shards),), base=str(tiny_teacher), out=tmp_path / "one", stage="distill", head_dim=16,
        steps=STEPS, batch_size=4, distill_lr=3e-3, eval_shards=str(tiny_shards), dtype="fp32", log_every=1, workers=0,
    )  # fmt: skip
    train_here(settings)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert len(losses(tmp_path / "one")) == STEPS + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "batches"),
    [((), 1), ((), 2), (("--fsdp",), 1), (("--fsdp",), 2), (("--fsdp", "--fuse"), 1)],
    ids=["ddp-1", "ddp-2", "fsdp-1", "fsdp-2", "fsdp-fused"],
)
def test_two_processes_train_as_one(
    flags: tuple[str, ...], batches: int, tiny_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """Also where a step has several batches."""
    held_out = ("--eval-shards", str(tiny_shards), "--eval-every", "3")
    train(tiny_shards, tiny_teacher, tmp_path / "one", 1, *held_out)
    train(tiny_shards, tiny_teacher, tmp_path / "two", 2, *held_out, *flags, batches=batches)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert two.keys() == one.keys()
    assert two == pytest.approx(one, rel=1e-4)
    student, other = (load_file(tmp_path / run / "model.safetensors") for run in ("one", "two"))
    assert student.keys() == other.keys()
    assert all(student[name].shape == other[name].shape for name in student)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--fsdp",)], ids=["ddp", "fsdp"])
def test_world_size_may_change_between_checkpoints(
    flags: tuple[str, ...], tiny_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """From one process to two and back, sharded only in between."""
    train(tiny_shards, tiny_teacher, tmp_path / "steady", 1)
    out = tmp_path / "changing"
    train(tiny_shards, tiny_teacher, out, 1, stop_after=2)
    train(tiny_shards, tiny_teacher, out, 2, *flags, stop_after=4)
    train(tiny_shards, tiny_teacher, out, 1)
    assert losses(out) == pytest.approx(losses(tmp_path / "steady"), rel=1e-4)
    weights = [load_file(run / "model.safetensors") for run in (tmp_path / "steady", out)]
    assert weights[0].keys() == weights[1].keys()


@pytest.mark.slow
def test_shares_are_continued_by_one_process_and_by_two_again(
    python_with_transformers: list[str], tiny_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """Written in the background, and made a whole student by a command. The single process is this one."""
    flags, out = ("--stage", "distill", "--fsdp", "--packing"), tmp_path / "changing"
    steady = TrainSettings(
        shards=(str(tiny_shards),), base=str(tiny_teacher), out=tmp_path / "steady", stage="distill", head_dim=16,
        steps=STEPS, batch_size=4, distill_lr=3e-3, align_lr=3e-3, dtype="fp32", log_every=1, save_every=2, workers=0,
        packing=True,
    )  # fmt: skip
    train_until(steady, 3)
    train(tiny_shards, tiny_teacher, out, 2, *flags, stop_after=5, python=python_with_transformers)
    checkpoint = out / "distill" / "checkpoint-2"
    assert len(list((checkpoint / "shares").glob("*.distcp"))) == 2
    assert (checkpoint / "whole.json").is_file()  # at the latest before the next one is begun
    assert not list(checkpoint.glob("*.safetensors"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", "--model", str(checkpoint), "--out", str(tmp_path / "whole")])
    assert ended.value.code == 0
    exported, expected = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "whole", tmp_path / "steady" / "distill" / "checkpoint-2")
    )
    assert exported.keys() == expected.keys()
    assert all(torch.allclose(exported[name], value, rtol=1e-3, atol=1e-4) for name, value in expected.items())
    # AdamW moves a weight by up to its rate however small the gradient is, and rounding decides on the smallest ones.
    far = [~torch.isclose(exported[name], value, rtol=1e-3, atol=1e-5) for name, value in expected.items()]
    assert sum(int(one.sum()) for one in far) < sum(one.numel() for one in far) / 1000
    AutoTokenizer.from_pretrained(tmp_path / "whole")
    train_here(steady)
    train_until(replace(steady, out=out), 5)
    train(tiny_shards, tiny_teacher, out, 2, *flags, python=python_with_transformers)
    assert losses(out) == pytest.approx(losses(tmp_path / "steady"), rel=1e-4)


@pytest.mark.slow
def test_a_plain_mixture_of_experts_continues_sharded(tiny_shards: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    """Its weights have other names in a file than in the model."""
    base = tiny_base("qwen3_moe", tiny_teacher, tmp_path / "base")
    train(tiny_shards, base, tmp_path / "steady", 1, "--preset", "transformer")
    out = tmp_path / "changing"
    train(tiny_shards, base, out, 1, "--preset", "transformer", stop_after=2)
    train(tiny_shards, base, out, 2, "--preset", "transformer", "--fsdp")
    assert losses(out) == pytest.approx(losses(tmp_path / "steady"), rel=1e-4)
    weights = [load_file(run / "model.safetensors") for run in (tmp_path / "steady", out)]
    assert weights[0].keys() == weights[1].keys()


@pytest.mark.slow
@pytest.mark.parametrize(("shards", "preset"), [("tiny_boundary_shards", "arwkv"), ("tiny_final_shards", "rad-rwkv7")])
def test_sharded_students_align_as_whole_ones(
    shards: str, preset: str, tiny_teacher: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """From boundaries, and from tokens, which is all that stage align reads of shards of final states."""
    flags, folder = ("--stage", "align", "--preset", preset), request.getfixturevalue(shards)
    train(folder, tiny_teacher, tmp_path / "one", 1, *flags)
    train(folder, tiny_teacher, tmp_path / "two", 2, *flags, "--fsdp", "--packing")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["align", "distill"])
def test_shares_of_frozen_weights_are_of_bf16(stage: str, tiny_teacher: Path, tmp_path: Path) -> None:
    """As they are unsharded; what is saved of a student is fp32 all the same."""
    base = shutil.copytree(tiny_teacher, tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    texts = ["one text to learn from, and more of it", "another text, which is a little longer than the first"]
    shards, flags = tmp_path / "shards", ("--stage", stage, "--dtype", "bf16")
    make_shards(base, texts * 4, shards, max_length=24, hidden="none")
    train(shards, base, tmp_path / "one", 1, *flags)
    train(shards, base, tmp_path / "two", 2, *flags, "--fsdp", stop_after=5)
    name = "model.layers.0.mlp.up_proj.weight"
    shares = FileSystemReader(tmp_path / "two" / stage / "checkpoint-2" / "shares").read_metadata()
    train(shards, base, tmp_path / "two", 2, *flags, "--fsdp")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-2)
    assert shares.state_dict_metadata[f"model.{name}"].properties.dtype == torch.bfloat16
    student = load_file(tmp_path / "two" / "model.safetensors")
    assert {value.dtype for value in student.values()} == {torch.float32}
    assert torch.equal(student[name], load_file(base / "model.safetensors")[name].float())
