from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from arwkv_kernels import backend_for, backends, wkv7


def test_auto_prefers_the_compiled_loops_on_a_cpu() -> None:
    choice = backend_for(torch.zeros(1, 2, 1, 32))
    assert choice.name == "cpu"
    assert "numba" in str(choice)


def test_without_numba_auto_runs_in_torch_and_says_why(
    monkeypatch: pytest.MonkeyPatch, make_case: Callable[..., Any]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(backends, "_obstacle_to_import", backends._obstacle_to_import.__wrapped__)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("numba", "triton") else find(name))
    x = torch.zeros(1, 2, 1, 32)
    assert str(backend_for(x)) == "torch: no cpu backend: numba is not installed (pip install numba)"
    with pytest.raises(ValueError, match='backend "cpu" cannot run: numba is not installed'):
        backend_for(x, backend="cpu")
    assert make_case(5).run("auto")[0].shape == (2, 5, 2, 32)


def test_a_numba_that_does_not_start_is_no_backend(
    monkeypatch: pytest.MonkeyPatch, make_case: Callable[..., Any]
) -> None:
    def refuse(name: str) -> None:
        raise ImportError("Numba needs NumPy 2.1 or less")

    monkeypatch.setattr(backends, "_obstacle_to_import", backends._obstacle_to_import.__wrapped__)
    monkeypatch.setattr(backends.importlib, "import_module", refuse)
    choice = backend_for(torch.zeros(1, 2, 1, 32))
    assert choice.name == "torch"
    assert "numba cannot be imported (ImportError: Numba needs NumPy 2.1 or less)" in choice.reason
    assert make_case(5).run("auto")[0].shape == (2, 5, 2, 32)


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_a_step_that_learns_is_said_to_run_in_torch(backend: str) -> None:
    x = torch.zeros(1, 1, 32, requires_grad=True)
    assert backend_for(x, backend=backend, operation="wkv7_step").name == "torch"
    with torch.no_grad():
        assert backend_for(x, backend=backend, operation="wkv7_step").name == "cpu"


@pytest.mark.parametrize(("dtype", "path"), [(torch.bfloat16, "decays allow it"), (torch.float32, "fp32 products")])
def test_the_reason_names_the_path_through_the_tokens(
    dtype: torch.dtype, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu = SimpleNamespace(is_cuda=True, dtype=dtype, shape=(1, 2, 1, 64))
    monkeypatch.setattr(backends, "_obstacle", lambda *_: None)
    assert backend_for(on_a_gpu).reason.endswith(path)  # type: ignore[arg-type]  # no GPU here


def test_head_sizes_without_a_compiled_loop_run_in_torch(make_case: Callable[..., Any]) -> None:
    case = make_case(5, 7)
    assert backend_for(case.tensors[0]).name == "torch"
    assert torch.isfinite(case.run("auto")[0]).all()


def test_unknown_and_impossible_backends_are_refused() -> None:
    x = torch.zeros(1, 2, 1, 32)
    with pytest.raises(ValueError, match='backend "fast" is not known; choose one of auto, reference'):
        wkv7(x, x, x, x, x, x, backend="fast")
    with pytest.raises(ValueError, match='backend "triton" cannot run: '):
        wkv7(x, x, x, x, x, x, backend="triton")


def test_an_odd_device_says_that_torch_is_the_only_path() -> None:
    assert backend_for(torch.zeros(1, 2, 1, 32, device="meta")).name == "torch"
