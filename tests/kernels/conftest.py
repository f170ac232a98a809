"""Inputs of the RWKV-7 recurrence, as a trained layer makes them, and a comparison of outputs and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from arwkv_kernels import wkv7

NAMES = ("r", "w", "k", "v", "a", "b", "state")


@dataclass(frozen=True)
class Case:
    """Leaf tensors: six inputs [B, T, H, D] and an initial state [N, H, D, D]."""

    tensors: tuple[Tensor, ...]
    cu_seqlens: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Case:
        """The inputs rounded to `dtype`; the state stays as it is, unless fp64 is asked for."""
        state_dtype = dtype if dtype == torch.float64 else torch.float32
        *inputs, state = (x.detach() for x in self.tensors)
        leaves = (*(x.to(dtype) for x in inputs), state.to(state_dtype))
        return replace(self, tensors=tuple(x.clone().requires_grad_() for x in leaves))

    def run(self, backend: str, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        *inputs, state = self.tensors
        o, final = wkv7(
            *inputs,
            initial_state=state,
            output_final_state=True,
            cu_seqlens=self.cu_seqlens,
            scale=scale,
            backend=backend,
        )
        assert final is not None
        return o, final

    def results(self, backend: str, scale: float = 1.0) -> dict[str, Tensor]:
        """o, the final state and the gradients of a loss that weighs every element of both differently."""
        o, final = self.run(backend, scale)
        weights = (torch.randn(x.shape, generator=seeded(9)).to(x.device) for x in (o, final))
        loss = sum((x.double() * weight).sum() for x, weight in zip((o, final), weights, strict=True))
        assert isinstance(loss, Tensor)
        gradients = torch.autograd.grad(loss, self.tensors)
        return {"o": o.detach(), "final": final.detach()} | dict(zip(NAMES, gradients, strict=True))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _make_case(
    T: int, D: int = 32, *, B: int = 2, H: int = 2, lowest_w: float = -0.6065, offsets: list[int] | None = None
) -> Case:
    generator = seeded(T * 1000 + D)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    B = 1 if offsets else B
    removed = torch.nn.functional.normalize(normal(B, T, H, D), dim=-1)
    inputs = (
        normal(B, T, H, D),
        lowest_w * torch.sigmoid(2 * normal(B, T, H, D)),
        normal(B, T, H, D) / D**0.5,
        normal(B, T, H, D),
        -removed,
        removed * torch.sigmoid(normal(B, T, H, D)),
        normal(len(offsets) - 1 if offsets else B, H, D, D) * 0.3,
    )
    return Case(tuple(x.requires_grad_() for x in inputs), torch.tensor(offsets) if offsets else None)


def _assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Largest difference over the largest expected magnitude, for each result by name."""
    for name, want in expected.items():
        got = actual[name].double()
        assert torch.isfinite(got).all(), f"{name} is not finite"
        scale = want.double().abs().max().clamp_min(1e-30)
        error = ((got - want.double()).abs().max() / scale).item() if want.numel() else 0.0
        assert error <= tolerance, f"{name}: relative error {error:.1e} above {tolerance:.1e}"


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
    return _make_case


@pytest.fixture(scope="session")
def assert_close() -> Callable[[dict[str, Tensor], dict[str, Tensor], float], None]:
    return _assert_close
