"""When a dataset that grows was extended, and by how much: from what its producer recorded at the end of each run."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

MOST = 10_000
_Count = Annotated[int, Field(ge=0, lt=1 << 53)]
_Moment = Annotated[float, Field(ge=0, lt=1e11, allow_inf_nan=False)]


class _Length(BaseModel):
    """A length that the dataset had when a run ended: `lengths` in corpus.json."""

    samples: _Count = 0
    tokens: _Count = 0
    shards: _Count = 0


class _Times(BaseModel):
    """When it came to have so many shards: `extended` in corpus.json, which earlier releases did not write."""

    shards: _Count
    began_at_s: _Moment | None
    ended_at_s: _Moment


_LENGTHS, _TIMES = TypeAdapter(list[_Length]), TypeAdapter(list[_Times])


@dataclass(frozen=True)
class Extension:
    """What one extension added, the first included. `ended_at` is None while it is under way."""

    began_at: datetime | None
    ended_at: datetime | None
    shards: int
    samples: int
    tokens: int


def extensions(
    report: Mapping[str, Any] | None,
    now: tuple[int, int, int],
    committed_at_s: Callable[[Iterable[int]], dict[int, float]],
) -> list[Extension]:
    """The dataset's extensions, oldest first, from its corpus.json.

    `now` are its committed shards, samples and tokens. `committed_at_s` gives the times of parts' commits: of an
    extension without recorded times, those of its first and last part count.
    """
    times = {one.shards: one for one in _read(_TIMES, (report or {}).get("extended"))}
    current = _Length(shards=now[0], samples=now[1], tokens=now[2])
    lengths = [_Length()]
    for length in [*_read(_LENGTHS, (report or {}).get("lengths")), current]:
        if length.shards > lengths[-1].shards:
            lengths.append(length)
    steps = list(pairwise(lengths))
    commits = committed_at_s(part for before, after in steps for part in (before.shards, after.shards - 1))
    found = []
    for before, after in steps:
        began_s, ended_s = commits.get(before.shards), commits.get(after.shards - 1)
        if (recorded := times.get(after.shards)) is not None:
            began_s, ended_s = recorded.began_at_s, recorded.ended_at_s
        found.append(
            Extension(
                _moment(began_s),
                None if after is current else _moment(ended_s),
                *(max(b - a, 0) for a, b in zip(_numbers(before), _numbers(after), strict=True)),
            )
        )
    return found


def _numbers(length: _Length) -> tuple[int, int, int]:
    return length.shards, length.samples, length.tokens


def _read(kind: TypeAdapter[list[Any]], value: object) -> list[Any]:
    """The list; nothing where the file says something else."""
    try:
        return kind.validate_python(value)[:MOST]
    except ValidationError:
        return []


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
