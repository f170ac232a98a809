"""Rounds on the student's own text: the task's answers, and the whole loop as one command."""

import json
from pathlib import Path

import pytest

from examples_run import EXAMPLES, run_example


def test_right_answers_go_on_from_each_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from rounds import right_answer

    assert right_answer("3+4=", 3) == "7,7+4=1,1+4=5."
    assert right_answer("9+0=", 1) == "9."


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_loop_runs_and_says_what_each_way_reaches(tmp_path: Path) -> None:
    sizes = {"rounds": 2, "prompts": 40, "sums": 2, "teacher-steps": 4, "first-tokens": 4000}
    words = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    figures = run_example("rounds.py", "--out", str(tmp_path), *words)
    assert set(figures["accuracy"]) == {"teacher", "student", "rounds", "offline", "answers"}
    assert len(figures["accuracy"]["rounds"]) == len(figures["tokens"]) == 2
    assert json.loads((tmp_path / "rounds.json").read_text()) == figures
    # The second round's text is the first round's student's, and its shards say so.
    origin = json.loads((tmp_path / "round-1.jsonl.origin").read_text())
    described = json.loads((tmp_path / "round-1" / "dataset.json").read_text())["corpus"]["description"]
    assert described == f"round-1.jsonl (written by {origin['written_by']})"
    assert run_example("rounds.py", "--out", str(tmp_path), *words) == figures
