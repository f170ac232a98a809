from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from arwkv_kernels.arguments import WkvInputs
from arwkv_kernels.chunked import chunk_for, wkv7_chunked


@pytest.mark.parametrize("chunk", [4, 16, 32, 64])
def test_chunk_sizes_agree(chunk: int, make_case: Callable[..., Any]) -> None:
    *inputs, state = (x.detach() for x in make_case(100).to(torch.float64).tensors)
    whole, whole_final = wkv7_chunked(WkvInputs(*inputs), state, None, 1.0, -0.6, chunk=10)
    o, final = wkv7_chunked(WkvInputs(*inputs), state, None, 1.0, -0.6, chunk=chunk)
    torch.testing.assert_close(o, whole)
    torch.testing.assert_close(final, whole_final)


def test_chunks_shrink_and_then_give_way_as_decays_deepen() -> None:
    assert [chunk_for(w) for w in (0.0, -0.607, -3.0, -5.0, -4000.0, -torch.inf)] == [32, 32, 16, None, None, None]
