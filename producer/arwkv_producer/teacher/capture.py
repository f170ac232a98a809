"""vLLM's plugin entry point: names the capturing model classes, imports none of them.

Every process that starts vLLM in this environment calls `register`, ours or not, so it must cost nothing: the classes
are registered by module path and load only when an engine asks for one of these architectures.
"""

from dataclasses import asdict, dataclass
from typing import Any

DECODERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""How the names of architectures end that say what follows a text."""
CAPTURING, OVER_TOKENIZER = "Capturing", "OverTokenizer"
"""Before an architecture of vLLM's: the same with our pooler, and with our vocabulary (`made_models`)."""

LOGITS_CHUNK_BYTES = 1 << 28
"""On a GPU each chunk reads the whole head once: with 64 MiB, that would take most of the time."""
CPU_LOGITS_CHUNK_BYTES = 1 << 24
"""On a CPU the same memory serves every chunk (larger blocks come fresh from the system), near the cache."""
CPU_LOGITS_CHUNK_ROWS = 128
"""But at least so many rows: each chunk reads the whole head once."""


@dataclass(frozen=True)
class CaptureSettings:
    """What the worker captures; travels to it as JSON in vLLM's `additional_config["arwkv_capture"]`."""

    top_k: int
    """Candidates kept per token; 0 captures no distributions."""
    vocab_size: int
    """The tokenizer's token ids: head rows from here on are padding."""
    draws: int = 0
    """Ids drawn at random per token."""
    draws_outside_top_k: bool = False
    """Draw them from the tail only."""
    attention_layers: tuple[int, ...] = ()
    boundary_layers: tuple[int, ...] = ()
    final: bool = False
    logits_chunk_bytes: int = LOGITS_CHUNK_BYTES
    """Logits live this many bytes (fp32) at a time; on a CPU see CPU_LOGITS_CHUNK_BYTES."""
    handover_folder: str | None = None

    def logits_rows(self, columns: int, on_cpu: bool) -> int:
        """Tokens whose logits live at one time."""
        if on_cpu:
            return max(min(self.logits_chunk_bytes, CPU_LOGITS_CHUNK_BYTES) // (4 * columns), CPU_LOGITS_CHUNK_ROWS)
        return max(self.logits_chunk_bytes // (4 * columns), 64)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "CaptureSettings":
        layers = {name: tuple(document[name]) for name in ("attention_layers", "boundary_layers")}
        return cls(**{**document, **layers})


def register() -> None:
    """Make vLLM know a capturing architecture for each of its text decoders (entry point `vllm.general_plugins`)."""
    from vllm import ModelRegistry

    known = set(ModelRegistry.get_supported_archs())
    for architecture in sorted(name for name in known if name.endswith(DECODERS)):
        for prefix in (CAPTURING, OVER_TOKENIZER):
            if prefix + architecture not in known and not architecture.startswith((CAPTURING, OVER_TOKENIZER)):
                ModelRegistry.register_model(prefix + architecture, f"{__package__}.made_models:{prefix}{architecture}")
