"""What is known of the families of teachers: how their blocks are made, and what was compared with transformers.

Logits and final hidden states need no entry here. Attention outputs and boundaries do: they are read inside a block.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arwkv_store.errors import UsageError

FORMS = {
    "pre-norm": "h + attention(norm(h)), then h + mlp(norm(h))",
    "post-norm": "h + norm(attention(h)), then h + norm(mlp(h))",
    "sandwich": "h + norm(attention(norm(h))), then h + norm(mlp(norm(h)))",
    "parallel": "h + attention(norm(h)) + mlp(norm(h))",
    "scaled": "h + c attention(norm(h)), then h + c mlp(norm(h))",
}
"""A block, by the name that dataset.json records of it."""


@dataclass(frozen=True)
class Family:
    """What is known of a `model_type`."""

    form: str | None = None
    """One of FORMS; None: unknown, so that only logits and final states are captured."""
    boundaries: bool = True
    """Whether vLLM's layers are handed the residual stream, whole or as a sum of two."""
    not_in_vllm: str = ""
    """Why the engine's capture is not compared with transformers in the tests; empty where it is."""


FAMILIES: Mapping[str, Family] = {
    "qwen2": Family("pre-norm"),
    "qwen3": Family("pre-norm"),
    "qwen3_moe": Family("pre-norm"),
    "llama": Family("pre-norm"),
    "mistral": Family("pre-norm"),
    "phi3": Family("pre-norm"),
    "olmo2": Family("post-norm"),
    "gemma2": Family("sandwich"),
    "gemma3_text": Family("sandwich"),
    "glm4": Family("sandwich"),
    "cohere": Family("parallel", boundaries=False),
    "granite": Family("scaled"),
    "gpt_oss": Family("pre-norm"),
    "deepseek_v2": Family("pre-norm"),
    "deepseek_v3": Family("pre-norm"),
    "qwen3_next": Family(None, not_in_vllm="on a CPU vLLM computes its linear attention in bf16 only"),
}
"""By `model_type`. Each entry is a case of tests/producer/test_families.py."""


def family_of(config: Mapping[str, Any]) -> Family:
    """What is known of a teacher's family, by the text part of its configuration."""
    return FAMILIES.get(str(config.get("model_type", "")), Family(not_in_vllm="this family was not compared"))


def require_known_block(teacher: str, config: Mapping[str, Any], hidden_states: str) -> None:
    """Raise UsageError where hidden states of this kind cannot be read inside the teacher's blocks."""
    family, kind = family_of(config), config.get("model_type")
    if hidden_states in ("none", "final"):
        return
    if family.form is None:
        known = ", ".join(name for name, found in FAMILIES.items() if found.form is not None)
        raise UsageError(
            f"--teacher {teacher} --hidden-states {hidden_states}: the form of {kind} blocks is not known; capture "
            f"logits or --hidden-states final, or take a teacher of one of {known}"
        )
    if hidden_states == "boundaries" and not family.boundaries:
        raise UsageError(
            f"--teacher {teacher} --hidden-states boundaries: {kind} layers do not hand on one residual stream; "
            "capture --hidden-states attention"
        )
