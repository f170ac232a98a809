"""Growth over time: nothing is lost however the commits lie, and it stays small however many they are."""

import json
import math
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from arwkv_api.index.timeline import SLOTS, grown, timeline_of

Commits = list[tuple[float, int, int]]
commits = st.lists(
    st.tuples(st.floats(0, 4e9), st.integers(0, 10**12), st.integers(0, 10**12)), min_size=1, max_size=60
)


def _totals(some: Commits) -> tuple[int, int, int]:
    return len(some), sum(tokens for _, tokens, _ in some), sum(size for _, _, size in some)


@given(commits, commits, st.integers(2, 50))
@example([(0.0, 0, 0)], [(4e9, 0, 0), (math.nextafter(4e9, 0), 0, 0)], 2)  # two slots, one microsecond
def test_last_point_is_the_totals_and_every_point_adds(first: Commits, then: Commits, points: int) -> None:
    timeline = timeline_of(grown(grown(None, first), then), points)
    last = timeline[-1]
    assert (last.shards, last.tokens, last.size_bytes) == _totals(first + then)
    assert len(timeline) <= points
    assert math.isclose(last.at.timestamp(), max(at for at, *_ in first + then), abs_tol=1e-5)
    for earlier, later in pairwise(timeline):
        assert earlier.at < later.at
        assert (earlier.shards, earlier.tokens) <= (later.shards, later.tokens)


def test_many_commits_take_few_slots_and_keep_the_count_at_each() -> None:
    some: Commits = [(1.7e9 + 37.0 * number, 10, 100) for number in range(20_000)]
    growth = grown(None, some)
    width_s, slots = json.loads(growth)
    assert SLOTS / 2 <= len(slots) <= SLOTS
    assert len({int(at_s // width_s) for at_s, *_ in slots}) == len(slots)
    for point in timeline_of(growth, 1000):
        committed = sum(at <= point.at.timestamp() + 1e-6 for at, *_ in some)
        assert (point.shards, point.tokens) == (committed, 10 * committed)


def test_nothing_committed_is_no_point() -> None:
    assert timeline_of(None, 200) == []
    assert timeline_of(grown(None, []), 200) == []
