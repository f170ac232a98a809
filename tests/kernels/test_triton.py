"""The Triton kernels, proved without a GPU: their numbers under the interpreter, their resources from the compiler.

Both run in processes of their own: Triton decides at import whether it interprets, and the path decides its version.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
SHARED_MEMORY_OF_AN_H100 = 227 * 1024
OLDER_TRITON = "3.6.0"


def _run(command: list[str], **environment: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def _interpret(marked: str) -> None:
    flags = ["-q", "-p", "no:cacheprovider", "-W", "default", "-m", marked]
    paths = [str(HERE / "interpreted.py"), str(HERE / "interpreted_parallel.py")]
    _run([sys.executable, "-m", "pytest", *flags, *paths], TRITON_INTERPRET="1", PYTHONPATH=_path(HERE))


def _path(*first: Path) -> str:
    return os.pathsep.join([*map(str, first), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_kernels_are_right_under_the_interpreter() -> None:
    _interpret("not slow")


@pytest.mark.slow
def test_kernels_are_right_under_the_interpreter_in_longer_cases() -> None:
    _interpret("slow")


def _compile(*arguments: int | str, **environment: str) -> list[dict[str, Any]]:
    words = [str(x) for x in arguments]
    output = _run([sys.executable, "-W", "ignore", str(HERE / "compile_for_hopper.py"), *words], **environment)
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def _assert_they_fit(reports: list[dict[str, Any]], kernels: int, *, on_tensor_cores: bool = True) -> None:
    assert len(reports) == kernels
    for report in reports:
        assert report["stack_bytes"] == 0, f"registers spill: {report}"
        assert report["registers"] <= 255
        assert report["shared_bytes"] <= SHARED_MEMORY_OF_AN_H100, report
        if report["kernel"].startswith("wkv7_") and "exact" not in report["kernel"] and "step" not in report["kernel"]:
            assert report["tensor_core"] == on_tensor_cores, report


def test_kernels_of_head_size_64_compile_for_an_h100_without_spilling() -> None:
    _assert_they_fit(_compile(64), kernels=20)


@pytest.mark.slow
def test_kernels_of_every_head_size_compile_without_spilling() -> None:
    _assert_they_fit(_compile(32, 64, 128), kernels=46)


@pytest.mark.slow
def test_kernels_of_the_parallel_form_compile_without_spilling() -> None:
    _assert_they_fit(_compile("--parallel", 32, 64, 128), kernels=50)


@pytest.mark.slow
def test_kernels_for_fp32_compile_without_spilling() -> None:
    _assert_they_fit(_compile("--fp32", 32, 64, 128), kernels=15, on_tensor_cores=False)


@pytest.mark.slow
def test_kernels_compile_on_the_triton_that_gpu_machines_carry(tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "arwkv" / f"triton-{OLDER_TRITON}"
    if not (cache / "triton").exists():
        fresh = tmp_path_factory.mktemp("triton")
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(fresh)]
        _run([*install, f"triton=={OLDER_TRITON}"])
        cache.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(fresh, cache)
    reports = _compile(32, 64, 128, PYTHONPATH=_path(cache))
    in_fp32 = _compile("--fp32", 32, 64, 128, PYTHONPATH=_path(cache))
    assert {report["triton"] for report in reports + in_fp32} == {OLDER_TRITON}
    _assert_they_fit(reports, kernels=46)
    _assert_they_fit(in_fp32, kernels=15, on_tensor_cores=False)
