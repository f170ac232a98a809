"""The flags of `student rollout`; no torch here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from arwkv_store.commands.command_line import unset
from arwkv_store.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """Let a student answer prompts, many at a time: text for `producer generate`, whose teacher then scores it."""

    model: str
    """Folder of a student."""
    data: Path
    """JSONL file. Each line has a `prompt` (a text, or turns) or `messages`; other fields are carried along."""
    out: Path
    """JSONL file to write. After a stop, the same command continues it."""
    samples: int = 1
    """Answers to each prompt."""
    prompts: Annotated[int | None, unset("INT", "default: all")] = None
    """Answer only the first prompts."""
    max_new_tokens: int = 256
    """Maximum number of new tokens of an answer."""
    temperature: float = 1.0
    """0: take the likeliest token each time. Above 0: sample."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that hold this probability together."""
    seed: int = 0
    """Seed of the sampling. An answer depends on it, on its prompt's line and on its number, not on its batch."""
    batch_size: int = 32
    """Answers at a time."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of matrix products. auto: bf16 if the processor multiplies it natively, else fp32."""
    json: bool = False
    """Print a summary as one JSON document."""

    def __post_init__(self) -> None:
        """Raise UsageError for a number out of range."""
        for name in ("samples", "prompts", "max_new_tokens", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: give at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"--temperature {self.temperature}: give 0 or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p {self.top_p}: give a share above 0, at most 1")
