"""What is known of the families of teachers: how their blocks are made, and what was compared with transformers.

Logits and final hidden states need no entry here. Attention outputs and boundaries do: they are read inside a block.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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


NEEDS_TORCHVISION = "its class in vLLM needs torchvision, which has no build without CUDA in the package registry"
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
    "idefics3": Family("pre-norm"),
    "qwen2_audio": Family("pre-norm", not_in_vllm="vLLM does not know the tensor names that transformers 5 gives it"),
    "llava": Family("pre-norm", not_in_vllm=NEEDS_TORCHVISION),
    "mistral3": Family("pre-norm", not_in_vllm=NEEDS_TORCHVISION),
    "gemma3": Family("sandwich", not_in_vllm=NEEDS_TORCHVISION),
    "qwen2_vl": Family("pre-norm", not_in_vllm=NEEDS_TORCHVISION),
    "qwen2_5_vl": Family("pre-norm", not_in_vllm=NEEDS_TORCHVISION),
    "qwen3_vl": Family("pre-norm", not_in_vllm=NEEDS_TORCHVISION),
    "qwen3_next": Family(None, not_in_vllm="on a CPU vLLM computes its linear attention in bf16 only"),
}
"""By `model_type`; of a multimodal wrapper its own, and the entry is of its text part. Each entry is a case of
tests/producer/test_families.py."""


def family_of(config: Mapping[str, Any]) -> Family:
    """What is known of a teacher's family, by its configuration. A wrapper that was not compared has its text part's
    blocks."""
    if found := FAMILIES.get(str(config.get("model_type", ""))):
        return found
    text = FAMILIES.get(str(config.get("text_config", {}).get("model_type", "")))
    if text is not None:
        return replace(text, not_in_vllm="this wrapper was not compared")
    return Family(not_in_vllm="this family was not compared")


def require_known_block(
    teacher: str, config: Mapping[str, Any], hidden_states: str, shows_streams: Callable[[], bool]
) -> None:
    """Raise UsageError where hidden states of this kind cannot be read inside the teacher's blocks.

    `shows_streams` is asked of blocks that are not known: whether the backend's model shows the boundaries itself.
    """
    family, kind = family_of(config), config.get("model_type")
    if hidden_states in ("none", "final"):
        return
    if hidden_states == "boundaries" and family.form is None and shows_streams():
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
