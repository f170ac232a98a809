"""A batch of long samples in segments of time, each a batch of its own, for a model that passes its state on.

Shape legend: B batch, T time, t tokens of a segment, N stored entries.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BY_TIME = ("input_ids", "attention_mask", "predicts", "true_logprob", "entropy", "final")
"""Fields [B, T, …] of a batch."""
FLAT = ("counts", "tail_logprob", "entropy_gap")
"""Fields [B·T]."""


def segments(batch: dict[str, Tensor], tokens: int) -> Iterator[dict[str, Tensor]]:
    """The batch (made by `collate`, not packed) `tokens` at a time; segments that are padding alone are left out.

    Adds next_ids [B, t], the token after each position, also after the last one.
    """
    shape, whole = batch["input_ids"].shape, batch | {"next_ids": batch["input_ids"].roll(-1, dims=1)}
    for start in range(0, int(batch["attention_mask"].sum(dim=1).max()), tokens):
        part = slice(start, start + tokens)
        segment = {name: whole[name][:, part] for name in (*BY_TIME, "next_ids") if name in whole}
        for name in FLAT:
            if name in whole:
                segment[name] = whole[name].view(shape)[:, part].flatten()
        if "counts" in whole:
            inside = torch.zeros(shape, dtype=torch.bool, device=batch["counts"].device)
            inside[:, part] = True
            kept_N = torch.repeat_interleave(inside.flatten(), batch["counts"])
            segment |= {name: batch[name][kept_N] for name in ("ids", "logprobs")}
        yield segment
