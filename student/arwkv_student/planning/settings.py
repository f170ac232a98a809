"""The flags of `student plan`; no torch here."""

from dataclasses import dataclass
from typing import Annotated, Literal

from arwkv_store.commands.command_line import unset
from arwkv_store.errors import UsageError
from arwkv_student.model.time_mix_options import Preset
from arwkv_student.settings import AdvancedTimeMixer


@dataclass(frozen=True, kw_only=True)
class Work:
    """The student, and how much it reads."""

    base: Annotated[str, unset("NAME", "required")] = ""
    """Checkpoint that the student starts from: a folder with a config.json, or a Hub name (NAME@REVISION)."""
    preset: Annotated[Preset | None, unset("PRESET", "default: arwkv")] = None
    """Recipe: the kind of time mixer, and the parameters that stage distill trains."""
    trained: Literal["preset", "all", "frozen-mlp", "time-mix"] = "preset"
    """Which parameters stage distill trains."""
    align_tokens: int = 100_000_000
    """Tokens of stage align."""
    distill_tokens: int = 500_000_000
    """Tokens of stage distill."""
    bytes_per_token: float = 321.0
    """Bytes of a token's stored logits. `producer plan` prints them for each way of capture."""
    context: int = 2048
    """Tokens of a sample."""
    students: int = 1
    """Students that stage align would train from one capture of attention outputs."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What it runs on."""

    processes: int = 1
    """Devices that train together, one process each."""
    batch_size: int = 4
    """Sequences per step and device."""
    fsdp: bool = False
    """Shard parameters and optimizer state over the devices."""
    gradient_checkpointing: bool = False
    """Recompute layers in the backward pass of stage distill."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Type of matrix products."""
    tflops: float = 989.0
    """Peak of one device in this type, in 10¹² operations per second. 989: H100 in bf16."""
    utilization: float = 0.3
    """Share of the peak that is reached in training."""
    disk_mb_per_s: float = 2000.0
    """Rate at which stored attention outputs are read, in 10⁶ bytes per second, of all devices together."""
    json: bool = False
    """Print the plan as one JSON document."""


@dataclass(frozen=True, kw_only=True)
class PlanSettings(Work, Machine, AdvancedTimeMixer):
    """Print what a student costs, stage by stage: memory, hours and bytes. Only the base's config.json is read."""

    def __post_init__(self) -> None:
        """Raise UsageError for a number out of range."""
        for name in ("align_tokens", "distill_tokens", "context", "students", "processes", "batch_size"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("bytes_per_token", "tflops", "disk_mb_per_s"):
            _require(name, getattr(self, name), getattr(self, name) > 0, "a number above 0")
        _require("utilization", self.utilization, 0 < self.utilization <= 1, "a share above 0, to 1")


def _require(name: str, value: float, allowed: bool, wanted: str) -> None:
    if not allowed:
        raise UsageError(f"--{name.replace('_', '-')} {value}: give {wanted}")
