"""Extensions of a dataset that grows: what its producer recorded, or what the commits say where it did not."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api_eventually import eventually
from arwkv_api.views.extensions import extensions
from store_examples import write_tokens

LENGTHS = [{"samples": 4, "tokens": 40, "shards": 1}, {"samples": 10, "tokens": 90, "shards": 3}]
TIMES = [
    {"shards": 1, "began_at_s": 1000.0, "ended_at_s": 1060.0},
    {"shards": 3, "began_at_s": None, "ended_at_s": 2060.0},
]


def _commits(parts: Iterable[int]) -> dict[int, float]:
    return {part: 5000.0 + part for part in parts}


def _shown(report: Any, now: tuple[int, int, int]) -> list[tuple[float | None, float | None, int, int, int]]:
    return [
        (
            one.began_at and one.began_at.timestamp(),
            one.ended_at and one.ended_at.timestamp(),
            one.shards,
            one.samples,
            one.tokens,
        )
        for one in extensions(report, now, _commits)
    ]


def test_recorded_times_come_first_and_commits_take_their_place() -> None:
    whole = (3, 10, 90)
    recorded = _shown({"lengths": LENGTHS, "extended": TIMES}, whole)
    assert recorded == [(1000.0, 1060.0, 1, 4, 40), (None, 2060.0, 2, 6, 50)]
    assert _shown({"lengths": LENGTHS}, whole) == [(5000.0, 5000.0, 1, 4, 40), (5001.0, 5002.0, 2, 6, 50)]


def test_parts_that_no_run_has_finished_are_under_way() -> None:
    shown = _shown({"lengths": LENGTHS, "extended": TIMES}, (5, 15, 120))
    assert shown[-1] == (5003.0, None, 2, 5, 30)
    assert _shown(None, (2, 8, 60)) == [(5000.0, None, 2, 8, 60)]
    assert _shown(None, (0, 0, 0)) == []


HOSTILE = [
    {"lengths": "x"}, {"lengths": [{"shards": -1}]}, {"lengths": [{"shards": 10**30}]}, {"lengths": [[1]]},
    {"lengths": None, "extended": [{"shards": 2, "began_at_s": 1e300, "ended_at_s": 0}]},
    {"extended": [{"shards": 2, "began_at_s": float("nan"), "ended_at_s": 0}]},
]  # fmt: skip


@pytest.mark.parametrize("report", HOSTILE, ids=range(len(HOSTILE)))
def test_report_that_says_something_else_counts_for_nothing(report: dict[str, Any]) -> None:
    assert _shown(report, (2, 8, 60)) == [(5000.0, None, 2, 8, 60)]


def test_lengths_that_fall_back_add_nothing() -> None:
    assert [one[2:] for one in _shown({"lengths": [*LENGTHS[::-1], *LENGTHS]}, (3, 10, 90))] == [(3, 10, 90)]


def test_dataset_shows_when_it_grew(client: TestClient, root: Path) -> None:
    place = "/v1/datasets/tokens/extensions"
    assert client.get("/v1/datasets/train/extensions").json() == {"items": []}
    assert client.get("/v1/datasets/absent/extensions").status_code == 404
    write_tokens(root / "tokens", parts=[0])
    eventually(lambda: client.get(place).is_success and client.get(place).json()["items"])
    (one,) = client.get(place).json()["items"]
    assert (one["shards"], one["samples"], one["ended_at"]) == (1, 4, None)
    dataset = client.get("/v1/datasets/tokens").json()
    length = {"samples": 4, "tokens": dataset["tokens"], "shards": 1}
    (root / "tokens" / "corpus.json").write_text(json.dumps({"lengths": [length], "extended": TIMES[:1]}))
    (one,) = client.get(place).json()["items"]
    assert (one["began_at"], one["ended_at"]) == ("1970-01-01T00:16:40Z", "1970-01-01T00:17:40Z")
    assert one["tokens"] == dataset["tokens"]
