"""The flags of `student select`; no torch here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from arwkv_store.commands.command_line import unset
from arwkv_store.errors import UsageError
from arwkv_student.model.time_mix_options import Preset
from arwkv_student.settings import AdvancedTimeMixer

Score = Literal["error", "kl", "greedy", "removal"]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which layers keep the base's attention, chosen by data."""

    base: str
    """Checkpoint that the student starts from: a folder, or a Hub name (NAME@REVISION)."""
    shards: str
    """Dataset that the fit reads: attention outputs or boundaries of the base, or its tokens alone."""
    keep: int
    """Number of layers that keep their attention."""
    out: Path
    """File to write, for --layers of `student train`."""
    preset: Annotated[Preset | None, unset("{" + ",".join(get_args(Preset)) + "}", "default: arwkv")] = None
    """The kind of time mixer."""
    score: Score = "kl"
    """`error`: keep the layers that the closed-form fit leaves farthest from their attention. `kl`: those whose
    attention, alone, brings the fitted student closest to the teacher. `greedy`: the same, layer after layer,
    among those that are best alone. `removal`: those without whose attention, all others attending, the student is
    farthest from the teacher."""
    calibration_tokens: int = 20_000
    """Tokens that the closed-form fit of the time mixers reads."""
    score_tokens: int = 2_000
    """Tokens that each comparison with the teacher reads."""
    score_shards: Annotated[str | None, unset("URI", "default: --shards")] = None
    """Dataset with logits that the comparisons read; `error` goes without."""
    batch_size: int = 8
    """Sequences at a time."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of matrix products. auto: bf16 if the processor multiplies it natively, else fp32."""
    seed: int = 0
    """Seed of the time mixers' initial weights, and of the order of samples."""
    json: bool = False
    """Print the file's content as one JSON document."""


@dataclass(frozen=True, kw_only=True)
class SelectSettings(Selection, AdvancedTimeMixer):
    """Choose the layers that keep their attention, and write a file that `student train --layers` reads."""

    def __post_init__(self) -> None:
        """Raise UsageError for a number out of range."""
        for name in ("keep", "calibration_tokens", "score_tokens", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: give at least 1")
        if self.layers is not None:
            raise UsageError("--layers: student select chooses the layers; leave it out")
        if self.kept_rope is not None or self.kept_window is not None:
            raise UsageError(
                "--kept-rope, --kept-window: layers are tried with the base's own attention; leave them out here, and "
                "give them to student train"
            )
