"""Actors on a Ray cluster, each with one engine. Only part numbers are exchanged; actors write shards directly."""

import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arwkv_producer.check.samples import BadCapture, GaveUp
from arwkv_producer.config import GenerateConfig
from arwkv_producer.run.account import Account
from arwkv_producer.run.backend import start_engine
from arwkv_producer.run.job import Job
from arwkv_producer.run.parts import Work, commit_parts, require_complete
from arwkv_producer.run.teacher_pass import TeacherPass
from arwkv_store import ShardManifest, create_dataset
from arwkv_store.errors import NotFound, TryAgain, UsageError
from arwkv_store.format.layout import DATASET_FILE

PARTS_PER_CALL = 4
"""Parts given to an actor at once, so that it writes one while it captures the next; its death loses at most these."""
DEATHS_PER_ACTOR = 3
"""Average number of replacements per actor before the run gives up."""

Parts = tuple[int, list[int]]
"""Numbers of one of the works and of some of its parts."""


@dataclass(frozen=True)
class Made:
    """The result of one call to an actor."""

    committed: list[ShardManifest]
    bad: list[tuple[int, BadCapture]]
    """Samples without a usable answer."""
    failure: BadCapture | None = None
    """Why some of the parts were not made."""


class _Notes(Account):
    """An actor's account: it records the events that the driver counts, prints and logs."""

    def __init__(self, config: GenerateConfig) -> None:
        super().__init__(config)
        self.noted: list[tuple[int, BadCapture]] = []

    def bad(self, sample_id: int, reason: BadCapture) -> None:
        self.noted.append((sample_id, reason))


class CapturingActor:
    """Runs in a Ray worker: starts its engine with the first parts, and keeps it."""

    def __init__(self, config: GenerateConfig, jobs: list[Job]) -> None:
        self._config, self._jobs = config, jobs
        self._notes = _Notes(config)
        self._engine: Any = None
        self._passes: dict[int, TeacherPass] = {}

    def make(self, parts: Parts) -> Made:
        """Capture and commit the parts. Bad samples in a row are counted over calls."""
        number, wanted = parts
        job = self._jobs[number]
        if "://" not in job.out and not (Path(job.out) / DATASET_FILE).exists():
            raise NotFound(f"{job.out}: not found on {socket.gethostname()}; choose a folder that all nodes share")
        if self._engine is None:
            self._engine = start_engine(self._config, self._jobs[0])
        if number not in self._passes:
            self._passes[number] = TeacherPass(job, self._engine, self._notes)
        work = Work(job, create_dataset(job.out, job.info), len(wanted), wanted)
        self._notes.noted = []
        failure = None
        try:
            commit_parts(work, self._passes[number], self._notes, lambda: False)
        except BadCapture as bad:
            failure = bad
        return Made(work.committed, self._notes.noted, failure)


def capture_on_cluster(
    config: GenerateConfig, works: list[Work], account: Account, stopping: Callable[[], bool]
) -> None:
    """Let the cluster's actors make the works' parts, each once; a dead actor is replaced and its parts are made again.

    Raises an actor's error, BadCapture if parts could not be made, and TryAgain after a stop request or if actors keep
    dying; committed parts stay.
    """
    began = time.monotonic()
    with _connected(config) as ray:
        dispatch = _Dispatch(ray, config, works, account)
        dispatch.run(stopping)
    for work in works:
        work.capture_s = time.monotonic() - began
    if dispatch.gave_up is not None:
        raise dispatch.gave_up
    if dispatch.failures:
        raise BadCapture(f"{len(dispatch.failures)} calls left shards unwritten; first: {dispatch.failures[0]}")
    for work in works:
        require_complete(work)


class _Dispatch:
    """Which parts wait, and which actor makes which."""

    def __init__(self, ray: Any, config: GenerateConfig, works: list[Work], account: Account) -> None:
        self._ray, self._config, self._works, self._account = ray, config, works, account
        self._waiting = deque((number, part) for number, work in enumerate(works) for part in work.parts)
        self._actors, needs = _actors(config, ray)
        self._actor_class = ray.remote(CapturingActor).options(**needs)
        self._jobs = ray.put([_anywhere(work.job) for work in works])
        self._idle = deque(self._new_actor() for _ in range(min(self._actors, len(self._waiting))))
        self._busy: dict[Any, tuple[Any, Parts]] = {}
        self._deaths = 0
        self.failures: list[BadCapture] = []
        """What kept parts from being made."""
        self.gave_up: GaveUp | None = None
        """An actor's reason to expect no better of the parts that wait."""

    def _new_actor(self) -> Any:
        return self._actor_class.remote(replace(self._config, log_jsonl=None, metrics_port=None), self._jobs)

    def run(self, stopping: Callable[[], bool]) -> None:
        """Run until every part is made, or after `stopping` or giving up, until the running calls have ended."""

        def going_on() -> bool:
            return bool(self._waiting) and self.gave_up is None and not stopping()

        while self._busy or going_on():
            while self._idle and going_on():
                actor, parts = self._idle.popleft(), self._next_parts()
                self._busy[actor.make.remote(parts)] = actor, parts
            for call in self._ray.wait(list(self._busy), timeout=1.0)[0]:
                self._collect(call)

    def _next_parts(self) -> Parts:
        """Some parts of one work: fewer towards the end, so that the actors end together."""
        number = self._waiting[0][0]
        size = max(min(PARTS_PER_CALL, len(self._waiting) // (2 * self._actors)), 1)
        parts: list[int] = []
        while self._waiting and self._waiting[0][0] == number and len(parts) < size:
            parts.append(self._waiting.popleft()[1])
        return number, parts

    def _collect(self, call: Any) -> None:
        actor, (number, wanted) = self._busy.pop(call)
        try:
            made: Made = self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayActorError as error:
            self._count_death(error)
            actor = self._new_actor()
            writer = self._works[number].writer
            missing = set(writer.missing_parts())
            self._waiting.extendleft((number, part) for part in reversed(wanted) if part in missing)
            made = Made([writer.committed(part) for part in wanted if part not in missing], [])
        self._idle.append(actor)
        self._account_for(number, made)

    def _account_for(self, number: int, made: Made) -> None:
        for sample_id, reason in made.bad:
            self._account.bad(sample_id, reason)
        if made.failure is not None:
            self.failures.append(made.failure)
        if isinstance(made.failure, GaveUp):
            self.gave_up = made.failure
        self._works[number].committed += made.committed
        for manifest in made.committed:
            self._account.captured(manifest.tokens)
            self._account.committed(self._works[number].job.out, manifest)

    def _count_death(self, error: Exception) -> None:
        self._deaths += 1
        print(f"producer: an actor died ({self._deaths} so far); another actor makes its shards", file=sys.stderr)
        if self._deaths > DEATHS_PER_ACTOR * self._actors:
            raise TryAgain(
                f"--ray {self._config.ray}: actors keep dying; check the memory of the nodes; last: {error}"
            ) from error


@contextmanager
def _connected(config: GenerateConfig) -> Iterator[Any]:
    """Ray, connected during the block."""
    try:
        import ray
    except ImportError:
        raise UsageError("--ray: Ray is not installed; install arwkv[ray]") from None
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        _require_listening(config.ray)
        ray.init(address=config.ray, log_to_driver=config.verbose, logging_level="ERROR")
    except OSError as error:
        raise TryAgain(
            f"--ray {config.ray}: no cluster answers at this address ({error}); start one: ray start --head"
        ) from error
    for number, handler in handlers.items():
        signal.signal(number, handler)  # Ray has put its own in this one's place
    try:
        with redirect_stdout(sys.stderr):  # where Ray prints what its nodes say; stdout is for the summary
            yield ray
    finally:
        ray.shutdown()


def _require_listening(address: str | None) -> None:
    """Raise OSError if nothing listens at HOST:PORT: Ray itself would wait for minutes."""
    host, _, port = (address or "").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=10).close()


def _actors(config: GenerateConfig, ray: Any) -> tuple[int, dict[str, Any]]:
    """The number of actors, and the resources of each: its GPUs, or on a cluster without GPUs its share of the CPUs."""
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    if gpus:
        fitting = gpus // config.tensor_parallel
        needs: dict[str, Any] = {"num_gpus": config.tensor_parallel}
    else:
        fitting = len([node for node in ray.nodes() if node["Alive"]])
        needs = {"num_cpus": max(cpus // (config.ray_actors or fitting), 1), "scheduling_strategy": "SPREAD"}
    if not fitting:
        raise UsageError(f"--tensor-parallel {config.tensor_parallel}: the cluster has {gpus} GPUs; ask for fewer")
    return config.ray_actors or fitting, needs


def _anywhere(job: Job) -> Job:
    """The job with absolute paths, which are valid in another process's folder."""
    model = job.teacher.model
    if Path(model).expanduser().exists():
        model = str(Path(model).expanduser().absolute())
    out = job.out if "://" in job.out else str(Path(job.out).expanduser().absolute())
    return replace(job, out=out, teacher=replace(job.teacher, model=model))
