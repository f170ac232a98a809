"""One rule for the type of matrix products, in training, evaluation and generation, on either kind of processor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_model import student, tokens_BT

from arwkv_kernels.precision import compute_dtype
from arwkv_student.model.loading import computes_in_bf16, hold_products_in_bf16

PRODUCTS_OF_EACH_COMMAND = """
import sys, torch
from pathlib import Path
from arwkv_student import cli
from arwkv_student.settings import EvalSettings, GenerateSettings, TrainSettings
shards, base, out = sys.argv[1:]
seen = set()
def record(module, _, output):
    if isinstance(module, torch.nn.Linear):
        seen.add(output.dtype)
torch.nn.modules.module.register_module_forward_hook(record)
cli.train(TrainSettings(shards=(shards,), base=base, out=Path(out), head_dim=16, steps=1, batch_size=2, workers=0,
                        eval_shards=shards, json=True))
trained = str(seen)
seen.clear()
cli.evaluate(EvalSettings(model=out, shards=shards, samples=2, json=True))
evaluated = str(seen)
seen.clear()
cli.generate(GenerateSettings(model=out, prompt="x", max_new_tokens=2, json=True))
print(trained, evaluated, seen)
"""
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def test_every_command_multiplies_as_the_processor_does_best_and_says_so_once(
    tiny_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    arguments = [str(tiny_shards), str(tiny_teacher), str(tmp_path / "run")]
    command = [sys.executable, "-c", PRODUCTS_OF_EACH_COMMAND, *arguments]
    done = subprocess.run(command, env=os.environ | AVX2, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["{torch.float32}"] * 3
    assert done.stderr.count("matrix products in") == 1
    assert "matrix products in fp32 (--dtype auto); the cpu does not multiply bf16 natively" in done.stderr


def test_only_the_first_of_several_processes_says_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    computes_in_bf16.cache_clear()
    monkeypatch.setenv("RANK", "1")
    assert computes_in_bf16("auto") == (compute_dtype() == torch.bfloat16)
    assert not capsys.readouterr().err
    computes_in_bf16.cache_clear()


@pytest.mark.parametrize("preset", ["arwkv", "rad-rwkv7"])
def test_weights_held_in_bf16_say_what_autocast_says(preset: str) -> None:
    model = student(preset, (1,))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(tokens_BT(2)).logits
        hold_products_in_bf16(model)
        assert torch.equal(model(tokens_BT(2)).logits, expected)
    assert model.model.embed_tokens.weight.dtype == torch.float32
