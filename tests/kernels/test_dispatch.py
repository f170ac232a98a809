from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch

from arwkv_kernels import backend_for, wkv7


def test_auto_prefers_the_compiled_loops_on_a_cpu() -> None:
    choice = backend_for(torch.zeros(1, 2, 1, 32))
    assert choice.name == "cpu"
    assert "numba" in str(choice)


def test_without_numba_auto_runs_in_torch_and_says_why(
    monkeypatch: pytest.MonkeyPatch, make_case: Callable[..., Any]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("numba", "triton") else find(name))
    x = torch.zeros(1, 2, 1, 32)
    assert str(backend_for(x)) == "torch: no cpu backend: numba is not installed (pip install numba)"
    with pytest.raises(ValueError, match='backend "cpu" cannot run: numba is not installed'):
        backend_for(x, backend="cpu")
    assert make_case(5).run("auto")[0].shape == (2, 5, 2, 32)


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
