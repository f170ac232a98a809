"""Rounds on the student's own text: the task's answers, and the whole loop as one command."""

import json
import random
from pathlib import Path

import pytest

from examples_run import EXAMPLES, run_example


def test_answers_of_the_task_are_its_running_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from rounds import RoundsConfig, right_answer, sum_of

    assert right_answer("3+5+8+1=") == "3,8,6,7."
    prompt, right = sum_of(RoundsConfig().terms, random.Random(0))
    assert right == right_answer(prompt)
    assert len(right) == 2 * RoundsConfig().terms


@pytest.mark.slow
def test_loop_runs_and_says_what_each_way_reaches(tmp_path: Path) -> None:
    sizes = {"rounds": 2, "prompts": 40, "terms": 3, "teacher-steps": 4, "first-tokens": 4000, "questions": 10}
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
