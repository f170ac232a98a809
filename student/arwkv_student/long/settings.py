"""The flags of `student eval --suite long`; no torch here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from arwkv_store.commands.command_line import unset

Task = Literal["single", "multi-key", "variables", "aggregation"]
TASKS: tuple[Task, ...] = get_args(Task)


@dataclass(frozen=True, kw_only=True)
class LongContext:
    """--suite long: what a student still knows of a long text."""

    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)
    """Tokens of each text. A student's memory does not grow with them."""
    long_tasks: tuple[Task, ...] = TASKS
    """`single`: one number in a filler text. `multi-key`: one of eight. `variables`: all names of a value that is
    handed on. `aggregation`: the most frequent words of a list."""
    long_text: Annotated[Path | None, unset("FILE", "default: no perplexity")] = None
    """JSONL file with documents in `text`, for the perplexity by position. Short documents are joined."""
    chunk_tokens: int = 2048
    """Tokens that are read at a time; the state passes from one chunk to the next."""
