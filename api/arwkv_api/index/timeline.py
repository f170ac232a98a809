"""How a dataset grew: its commits counted by slots of time, few enough to be read at once however many there are.

Stored as JSON with the dataset, `[width_s, [[last_s, shards, tokens, size_bytes], …]]`, oldest slot first. A slot is
`width_s` seconds; once there are too many, the width doubles and neighbours are merged: nothing is counted again.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

SLOTS = 1024
FIRST_WIDTH_S = 2.0**-6

Slot = tuple[float, int, int, int]
"""Last commit in the slot (seconds since the epoch), and its shards, tokens and bytes."""


@dataclass(frozen=True)
class TimelinePoint:
    """Totals of all shards committed up to `at`."""

    at: datetime
    shards: int
    tokens: int
    size_bytes: int


def grown(growth: str | None, commits: Iterable[tuple[float, int, int]]) -> str:
    """`growth` with commits added, each (seconds since the epoch, tokens, bytes)."""
    width_s, kept = json.loads(growth) if growth else (FIRST_WIDTH_S, [])
    slots = _by_number(kept, width_s)
    for at_s, tokens, size_bytes in commits:
        _add(slots, (at_s, 1, tokens, size_bytes), width_s)
        while len(slots) > SLOTS:
            width_s *= 2
            slots = _by_number(slots.values(), width_s)
    return json.dumps([width_s, [slots[number] for number in sorted(slots)]], separators=(",", ":"))


def timeline_of(growth: str | None, points: int) -> list[TimelinePoint]:
    """At most `points` running totals, evenly spaced from the first commit to the last."""
    kept: list[Slot] = json.loads(growth)[1] if growth else []
    if not kept:
        return []
    first_s, last_s = kept[0][0], kept[-1][0]
    width_s = max((last_s - first_s) / (points - 1), FIRST_WIDTH_S)
    slots = _by_number([(at_s - first_s, n, tokens, size) for at_s, n, tokens, size in kept], width_s)
    shards = tokens = size_bytes = 0
    totals: dict[datetime, TimelinePoint] = {}
    for number in sorted(slots):
        after_s, *more = slots[number]
        shards, tokens, size_bytes = shards + more[0], tokens + more[1], size_bytes + more[2]
        at = datetime.fromtimestamp(first_s + after_s, UTC)  # in microseconds: two slots may end in the same one
        totals[at] = TimelinePoint(at, shards, tokens, size_bytes)
    return list(totals.values())


def _by_number(kept: Iterable[Slot], width_s: float) -> dict[int, Slot]:
    slots: dict[int, Slot] = {}
    for slot in kept:
        _add(slots, slot, width_s)
    return slots


def _add(slots: dict[int, Slot], more: Slot, width_s: float) -> None:
    number = int(more[0] // width_s)
    last_s, shards, tokens, size_bytes = slots.get(number, (more[0], 0, 0, 0))
    slots[number] = (max(last_s, more[0]), shards + more[1], tokens + more[2], size_bytes + more[3])
