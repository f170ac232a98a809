"""The origin of a student: what its run recorded of its sources, and of the runs that it started from."""

import json
from pathlib import Path
from typing import Any

from arwkv_student.run.run_folder import DONE, STAGES


def origin(student: Path, checkpoint: str) -> dict[str, Any]:
    """The record of the student that a run starts from: its hash `checkpoint`, its run, and that run's stages."""
    run = _run_of(student)
    return {
        "checkpoint": checkpoint,
        "run": None if run is None else json.loads((run / "run.json").read_text()),
        "stages": {} if run is None else _summaries(run, student),
    }


def runs_behind(student: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(identity, summaries by stage) of the run that a student's folder belongs to, after those it started from."""
    run = _run_of(student)
    if run is None:
        return []
    chain = [(json.loads((run / "run.json").read_text()), _summaries(run, student))]
    while (start := chain[0][0].get("start")) is not None and start["run"] is not None:
        chain.insert(0, (start["run"], start["stages"]))
    return chain


def _run_of(student: Path) -> Path | None:
    """The run that this folder, or this stage's folder, belongs to."""
    return next((folder for folder in (student, student.parent) if (folder / "run.json").is_file()), None)


def _summaries(run: Path, student: Path) -> dict[str, Any]:
    """The summaries of the finished stages, up to the one of this student."""
    name = student.resolve().name
    stages = STAGES[: STAGES.index(name) + 1] if run != student and name in STAGES else STAGES
    files = {stage: run / stage / DONE for stage in stages}
    return {stage: json.loads(file.read_text()) for stage, file in files.items() if file.is_file()}
