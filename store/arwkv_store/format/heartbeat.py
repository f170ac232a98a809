"""The heartbeat of a running capture or training: a small file beside its data, replaced every few seconds."""

import re
import time
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_HEARTBEAT_BYTES = 1 << 14
# A beat may come late on a busy machine, and clocks of machines differ.
LATE_BEATS, LATE_S = 4, 60.0
_NAME = re.compile(r"heartbeat-(\d{1,6})\.json", re.ASCII)

State = Literal["running", "finished", "stopped", "failed"]


def heartbeat_name(process: int) -> str:
    """The file of process number `process` of a run."""
    return f"heartbeat-{process}.json"


def is_heartbeat(name: str) -> bool:
    """Whether a file beside dataset.json or run.json is a heartbeat."""
    return _NAME.fullmatch(name) is not None


class Heartbeat(BaseModel):
    """What a process that makes a dataset, or trains a student, said last. Its writer computed every figure."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    format_version: Literal[1] = 1
    kind: Literal["capture", "training"]
    state: State
    process: int = Field(0, ge=0, description="its number among the run's processes")
    processes: int = Field(1, ge=1)
    host: str = Field("", max_length=255)
    began_at_s: float = Field(description="seconds since the epoch")
    at_s: float = Field(description="when it was written, in seconds since the epoch")
    every_s: float = Field(gt=0, description="seconds between two beats")
    stage: str = Field("", max_length=100, description="of a training")
    unit: Literal["shards", "steps"]
    done: int = Field(0, ge=0)
    total: int | None = Field(None, ge=0)
    tokens: int = Field(0, ge=0)
    tokens_per_s: float | None = Field(None, ge=0)
    left_s: float | None = Field(None, ge=0, description="seconds left at this speed")
    errors: int = Field(0, ge=0)
    message: str = Field("", max_length=2000, description="of the last error")

    def to_bytes(self) -> bytes:
        """The exact bytes of the file."""
        return self.model_dump_json().encode() + b"\n"

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self | None:
        """None for bytes that are no heartbeat, or one of a newer release."""
        try:
            return cls.model_validate_json(raw) if len(raw) <= MAX_HEARTBEAT_BYTES else None
        except ValidationError:
            return None

    def state_at(self, now_s: float | None = None) -> State:
        """The state now: a process that said nothing for some beats has stopped."""
        silent_s = (time.time() if now_s is None else now_s) - self.at_s
        late = silent_s > max(LATE_BEATS * self.every_s, LATE_S)
        return "stopped" if self.state == "running" and late else self.state
