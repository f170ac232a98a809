"""The flags of `producer write`; nothing heavy here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from arwkv_store.commands.command_line import unset
from arwkv_store.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Whose answers to which prompts."""

    teacher: str
    """A local model folder or a Hub name, optionally with `@revision`. `Qwen2.5-32B` means `Qwen/Qwen2.5-32B`."""
    data: tuple[str, ...]
    """Files as for `producer generate`. A record has a `prompt` (a text, or turns) or `messages`; other fields are
    carried along."""
    out: Path
    """JSONL file to write. After a stop, the same command continues it."""
    samples: int = 1
    """Answers to each prompt."""
    prompts: Annotated[int | None, unset("INT", "default: all")] = None
    """Answer only the first prompts."""
    max_new_tokens: int = 512
    """Maximum number of new tokens of an answer."""
    temperature: float = 1.0
    """0: take the likeliest token each time. Above 0: sample."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that hold this probability together."""
    seed: int = 0
    """Seed of the sampling. Each answer has its own, from this one and its number."""
    split: str = "train"
    """Split of a Hub dataset."""
    json: bool = False
    """Print a summary as one JSON document."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Settings of the engine."""

    batch_size: int = 256
    """Answers between two writes. A stop loses at most so many."""
    max_length: Annotated[int | None, unset("INT", "default: as many as the longest prompt needs")] = None
    """Most tokens of a prompt and its answer together."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The teacher's arithmetic. `auto`: the checkpoint's own, but float32 if the processor has no native bfloat16."""
    step_tokens: int = 4096
    """Tokens per engine step."""
    tensor_parallel: int = 1
    """Devices that share one copy of the teacher."""
    gpu_memory_fraction: float = 0.9
    """Fraction of each GPU's memory that vLLM may use."""
    verbose: bool = False
    """Show vLLM's own log."""


@dataclass(frozen=True, kw_only=True)
class WriteConfig(Answers, Engine):
    """Let the teacher answer prompts: text for `producer generate`. After a stop, the same command continues."""

    def __post_init__(self) -> None:
        """Raise UsageError for a number out of range."""
        whole = ("samples", "prompts", "max_new_tokens", "batch_size", "max_length", "step_tokens", "tensor_parallel")
        for name in whole:
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: give at least 1")
        if not self.data:
            raise UsageError("--data: no file given")
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"--temperature {self.temperature}: give 0 or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p {self.top_p}: give a share above 0, at most 1")
        if not 0 < self.gpu_memory_fraction <= 1:
            raise UsageError(f"--gpu-memory-fraction {self.gpu_memory_fraction}: from 0 to 1")
