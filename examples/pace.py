"""How long the demo will take on this machine, measured in its first seconds.

One training step of a model of the teacher's shape is timed here, in the machine's own precision. What each step of the
small demo costs a token, in units of such a training token, follows from its tables in docs/benchmarks.md. The
costs of a real teacher's demo were held to one run on a busy machine: 78 minutes said, 75 taken.
"""

import time
from collections.abc import Mapping
from typing import Any

from arwkv_kernels.precision import compute_dtype

COST = {
    "small": {"teacher": 1.0, "capture": 0.54, "align": 1.28, "distill": 1.97, "evaluation": 1.2},
    "small, bf16": {"teacher": 1.0, "capture": 1.0, "align": 1.75, "distill": 2.25, "evaluation": 1.2},
    "real": {"capture": 0.6, "align": 1.2, "distill": 1.5, "evaluation": 1.2},
}
STARTS_S = 120.0
"""What the commands take to start: imports, models, the teacher's engine."""


def in_bf16() -> bool:
    """Whether this CPU multiplies in bf16."""
    import torch

    return compute_dtype(device="cpu") == torch.bfloat16


def fastest_attention() -> str:
    """transformers' name of the attention that trains fastest on this CPU: torch's own goes backward slowly in bf16."""
    return "eager" if in_bf16() else "sdpa"


def train_tokens_per_s(config: Any, tokens: int, seconds: float = 3.0) -> float:
    """Tokens a second of forward and backward of a model of this configuration, in batches of `tokens`."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, attn_implementation=fastest_attention())
    dtype = compute_dtype(device="cpu")
    ids_BT = torch.randint(config.vocab_size, (max(1, tokens // 128), 128))
    done, began = 0, 0.0
    while not done or time.monotonic() - began < seconds:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            model(ids_BT, labels=ids_BT, use_cache=False).loss.backward()
        if began:
            done += ids_BT.numel()
        else:  # the first step, which allocates and chooses, is not counted
            began = time.monotonic()
    return done / (time.monotonic() - began)


def minutes(kind: str, tokens_of_step: Mapping[str, int], tokens_per_s: float) -> dict[str, float]:
    """Minutes of each step of a demo of this kind, "small" or "real"."""
    costs = COST["small, bf16" if kind == "small" and in_bf16() else kind]
    each = {step: costs[step] * tokens / tokens_per_s / 60 for step, tokens in tokens_of_step.items()}
    return each | {"starting": STARTS_S / 60}
