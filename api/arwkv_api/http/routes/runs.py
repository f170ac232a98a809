"""Training runs and their figures."""

import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from arwkv_api.access.auth import ReadAll
from arwkv_api.http.models import WorkState, moment
from arwkv_api.http.parameters import PAGE_LIMIT, Cursor, RunName, Search, TagFilter
from arwkv_api.http.problems import answers
from arwkv_api.http.service import ServiceDep
from arwkv_api.roots.folders import METRICS
from arwkv_api.views.lineage import datasets_of, hashes_used
from arwkv_api.views.runs import (
    heartbeat_of,
    is_found,
    notes_of,
    read_figures,
    read_samples,
    read_settings,
    read_stages,
)
from arwkv_api.words import asked_for
from arwkv_store.errors import NotFound
from arwkv_store.format.heartbeat import Heartbeat

router = APIRouter(prefix="/v1/runs", tags=["runs"])


class Run(BaseModel):
    """A run at a glance."""

    name: str = Field(examples=["demo-student"])
    updated_at: datetime = Field(description="when its last line of figures was written")
    size_bytes: int = Field(description="of its metrics.jsonl")
    state: WorkState | None = Field(description="null: it writes no heartbeat")
    stage: str | None = Field(description="as the heartbeat says", examples=["distill"])
    done: int | None = Field(description="steps of the stage that are done")
    total: int | None = Field(description="steps of the stage")
    left_s: float | None = Field(description="seconds that the stage takes from the last beat on")
    tags: list[str] = Field(description="of its notes", examples=[["baseline"]])


class RunDetail(Run):
    """A run with its settings."""

    settings: dict[str, Any] | None = Field(
        description="its run.json: preset, settings, and base, shards and start by content",
        examples=[{"preset": "arwkv", "learning_rate": 0.001}],
    )
    stages: dict[str, dict[str, Any]] = Field(
        description="summaries of the finished stages", examples=[{"align": {"steps": 100, "loss_mean": 0.5}}]
    )
    datasets: list[str] = Field(description="served datasets that it reads", examples=[["train"]])
    heartbeat: Heartbeat | None


class RunList(BaseModel):
    items: list[Run]


class RunFigures(BaseModel):
    """Lines of a run's metrics.jsonl."""

    items: list[dict[str, Any]] = Field(examples=[[{"stage": "align", "step": 10, "loss": 1.25}]])
    next_cursor: str = Field(description="give as `cursor` to get only what was written since")
    restarted: bool = Field(description="the file was replaced since `cursor`: forget the lines from before")


class RunSample(BaseModel):
    """One text, and the outputs of teacher and student for it."""

    prompt: str = Field(examples=["def __init__(self, "])
    teacher: str = Field(examples=["name):"])
    student: str = Field(examples=["value):"])
    stage: str | None = Field(examples=["distill"])
    step: int | None = Field(examples=[2000])


class RunSamples(BaseModel):
    """Lines of a run's samples.jsonl, newest first."""

    items: list[RunSample]


@router.get("", dependencies=[ReadAll], responses=answers())
def list_runs(
    service: ServiceDep,
    limit: Annotated[int, Query(ge=1, le=PAGE_LIMIT, description="most runs to answer")] = PAGE_LIMIT,
    search: Search = None,
    tag: TagFilter = None,
) -> RunList:
    """Runs under the roots and the folders given as --runs, newest first."""
    runs, words = [], asked_for(search or "")
    for name, folder in service.runs.folders().items():
        if words and not is_found(words, name, folder):
            continue
        if tag is not None and tag not in notes_of(folder).tags:
            continue
        with suppress(FileNotFoundError):  # removed after the listing
            runs.append((name, folder, (folder / METRICS).lstat()))
    newest = sorted(runs, key=lambda run: run[2].st_mtime_ns, reverse=True)[:limit]
    return RunList(items=[_run(name, folder, status, heartbeat_of(folder)) for name, folder, status in newest])


@router.get("/{name}", dependencies=[ReadAll], responses=answers(404))
def get_run(service: ServiceDep, name: RunName) -> RunDetail:
    """A run with its settings, its finished stages and its heartbeat."""
    folder = service.runs.find(name)
    try:
        status = (folder / METRICS).lstat()
    except FileNotFoundError as error:
        raise NotFound(f"run {name[:100]!r}: its {METRICS} was removed; GET /v1/runs lists the runs") from error
    beat = heartbeat_of(folder)
    settings = read_settings(folder)
    return RunDetail(
        **_run(name, folder, status, beat).model_dump(),
        settings=settings,
        stages=read_stages(folder),
        datasets=datasets_of(service.engine, service.settings.roots, hashes_used(settings)),
        heartbeat=beat,
    )


@router.get("/{name}/metrics", dependencies=[ReadAll], responses=answers(404), response_model=RunFigures)
def run_metrics(
    service: ServiceDep,
    name: RunName,
    cursor: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="most lines to answer")] = 10_000,
) -> Response:
    """The run's figures: all, or those written after `cursor`."""
    figures = read_figures(service.runs.find(name), cursor, limit)
    rest = RunFigures(items=[], next_cursor=figures.next_cursor, restarted=figures.restarted).model_dump_json()
    body = rest.encode().replace(b"[]", b"[" + b",".join(figures.items) + b"]", 1)
    return Response(body, media_type="application/json")


@router.get("/{name}/samples", dependencies=[ReadAll], responses=answers(404))
def run_samples(
    service: ServiceDep,
    name: RunName,
    limit: Annotated[int, Query(ge=1, le=1000, description="most samples to answer")] = 20,
) -> RunSamples:
    """The answers of teacher and student to the same prompts. Empty if the run wrote none."""
    samples = read_samples(service.runs.find(name), limit)
    return RunSamples(items=[RunSample(**sample) for sample in samples])


def _run(name: str, folder: Path, status: os.stat_result, beat: Heartbeat | None) -> Run:
    return Run(
        name=name,
        updated_at=moment(status.st_mtime),
        size_bytes=status.st_size,
        state=None if beat is None else beat.state_at(),
        stage=None if beat is None else beat.stage,
        done=None if beat is None else beat.done,
        total=None if beat is None else beat.total,
        left_s=None if beat is None else beat.left_s,
        tags=list(notes_of(folder).tags),
    )
