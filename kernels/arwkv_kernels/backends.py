"""Which backend runs an operation, and why."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from arwkv_kernels.arguments import wants_gradient

BACKENDS = ("auto", "reference", "torch", "cpu", "triton")
TRITON_HEAD_SIZES = (32, 64, 128)
# Three states of this size, and chunks of tokens, lie on a thread's stack: 2 MiB in fp64.
LARGEST_COMPILED_HEAD = 256


@dataclass(frozen=True)
class BackendChoice:
    """Which backend runs, and the reason in words."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def backend_for(x: Tensor, *, backend: str = "auto", operation: str = "wkv7") -> BackendChoice:
    """The backend that `operation` uses for a tensor like `x`, and why.

    `operation`: "wkv7" (x like r: [B, T, H, D]), "wkv7_step" ([B, H, D]), "linear_sparse_kl" (x like hidden) or
    "topk_logsumexp" (x the logits). With a `backend` other than "auto" the result is that backend, or a ValueError with
    the reason why it cannot run. For "wkv7_step", a gradient of `x` needs torch.
    """
    if backend not in BACKENDS:
        raise ValueError(f'{operation}: backend "{backend}" is not known; choose one of {", ".join(BACKENDS)}')
    if backend != "auto" and (obstacle := _obstacle(backend, x, operation)):
        raise ValueError(f'{operation}: backend "{backend}" cannot run: {obstacle}; use backend="auto"')
    if operation == "wkv7_step" and wants_gradient(x):
        return BackendChoice("torch", "a gradient is wanted, and wkv7_step has one in torch only")
    if backend != "auto":
        return BackendChoice(backend, "asked for" + _path(backend, x, operation))
    if x.is_cuda:
        best, praise = "triton", "Triton kernels on a CUDA device"
    elif x.device.type == "cpu" and operation.startswith("wkv7"):
        best, praise = "cpu", "loops compiled by numba"
    else:
        return BackendChoice("torch", f"plain torch is the path of {operation} on {x.device.type}")
    if obstacle := _obstacle(best, x, operation):
        return BackendChoice("torch", f"no {best} backend: {obstacle}")
    return BackendChoice(best, praise + _path(best, x, operation))


def _path(backend: str, x: Tensor, operation: str) -> str:
    """How Triton's recurrence processes the tokens; it depends on the precision."""
    if backend != "triton" or operation != "wkv7":
        return ""
    products = ", with fp32 products" if x.dtype == torch.float32 else ""
    return f", in chunks where the decays allow it{products}"


def _obstacle(backend: str, x: Tensor, operation: str) -> str | None:
    """Why `backend` cannot run `operation` on `x`, or None if it can."""
    if backend == "cpu":
        return _obstacle_to_numba(x, operation)
    if backend == "triton":
        return _obstacle_to_triton(x, operation)
    if backend == "reference" and operation != "wkv7":
        return f"{operation} has no fp64 loop"
    return None


def _obstacle_to_numba(x: Tensor, operation: str) -> str | None:
    if not operation.startswith("wkv7"):
        return f"{operation} has no compiled loop"
    if x.device.type != "cpu":
        return f"the tensor is on {x.device.type}"
    if torch.compiler.is_compiling():
        return "torch.compile cannot trace numba's loops"
    if x.shape[-1] % 2 or x.shape[-1] > LARGEST_COMPILED_HEAD:
        return f"head size {x.shape[-1]} is odd or above {LARGEST_COMPILED_HEAD}"
    return _obstacle_to_import("numba")


@functools.cache
def _obstacle_to_import(package: str) -> str | None:
    """Why `package` cannot be used, checked once by an import: numba refuses a numpy that is too new."""
    if not importlib.util.find_spec(package):
        return f"{package} is not installed (pip install {package})"
    try:
        importlib.import_module(package)
    except Exception as error:  # noqa: BLE001 - whatever a package's own start-up raises
        return f"{package} cannot be imported ({type(error).__name__}: {error})"
    return None


def _obstacle_to_triton(x: Tensor, operation: str) -> str | None:
    if obstacle := _obstacle_to_import("triton"):
        return obstacle
    if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensor is on {x.device.type} (only Triton's interpreter, TRITON_INTERPRET=1, runs there)"
    if x.dtype == torch.float64:
        return "fp64 has no Triton kernel"
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    if operation.startswith("wkv7") and x.shape[-1] not in TRITON_HEAD_SIZES:
        return f"head size {x.shape[-1]} has no configuration (there are {TRITON_HEAD_SIZES})"
    return None
