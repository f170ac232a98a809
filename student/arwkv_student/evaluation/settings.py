"""The flags of `student eval --tasks`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from arwkv_store.commands.command_line import unset


@dataclass(frozen=True, kw_only=True)
class Benchmarks:
    """lm-eval tasks instead of --shards."""

    tasks: Annotated[str | None, unset("NAME[,NAME...]", "default: none")] = None
    """Names of tasks, separated by commas."""
    suite: Annotated[Literal["arwkv-table1", "long"] | None, unset("{arwkv-table1,long}", "default: none")] = None
    """`arwkv-table1`: the seven benchmarks of arXiv 2501.15570, Table 1, at a context of 2048. `long`: made here."""
    task_folder: Annotated[Path | None, unset("DIR", "default: lm-eval's own")] = None
    """Folder with your own task files (YAML)."""
    max_length: Annotated[int | None, unset("INT", "default: the suite's, or the model's")] = None
    """Tokens of context."""
    num_fewshot: Annotated[int | None, unset("INT", "default: each task's own number")] = None
    """Examples before each question."""
    chat: bool = False
    """Apply the chat template to the questions."""
