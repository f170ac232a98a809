"""A run's folder: its identity, its finished stages, and its complete checkpoints.

RUN/run.json              settings and dataset, compared when the run continues
RUN/run.lock              locked while a process works here
RUN/heartbeat-0.json      whether the run lives, and how far it is
RUN/metrics.jsonl         one JSON object per line
RUN/samples.jsonl         outputs of teacher and student for held-out texts, in the same form
RUN/tensorboard/          the same figures for TensorBoard
RUN/align, RUN/distill,
RUN/sft, RUN/dpo          each stage's student, when done; checkpoint-N/ inside until then
RUN/                      the last stage's student
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from arwkv_store.errors import ConfigurationDiffers, TryAgain, UsageError
from arwkv_store.places.pulse import Pulse
from arwkv_student.run.durable import put_in_place, replace_text, sync_files, write_json

STAGES = ("align", "distill", "sft", "dpo")
WHOLE = "whole.json"
DONE = "stage.json"
HASHED = ("base", "teacher_head", "start")
"""Fields of run.json that describe checkpoints."""


@dataclass(frozen=True)
class RunFolder:
    """Paths and state of one run."""

    path: Path
    pulse: Pulse | None = None
    """The heartbeat, in the process that writes it."""

    @contextlib.contextmanager
    def announced(self, processes: PartialState) -> Iterator["RunFolder"]:
        """This folder with a heartbeat while the context is open."""
        if not processes.is_main_process:
            yield self
            return
        who = {"processes": processes.num_processes}
        with Pulse(str(self.path), kind="training", unit="steps", **who) as pulse:
            yield replace(self, pulse=pulse)

    def say(self, **figures: Any) -> None:
        """Tell the heartbeat of newer figures."""
        if self.pulse is not None:
            self.pulse.say(**figures)

    @property
    def identity(self) -> Path:
        """The JSON file of what must not change."""
        return self.path / "run.json"

    def recorded_shards(self) -> list[dict[str, Any]]:
        """What the run recorded of each of its --shards; nothing for a run that has not begun."""
        recorded = json.loads(self.identity.read_text()) if self.identity.is_file() else {}
        named = (re.fullmatch(r"shards_(\d+)_(\w+)", name) for name in recorded)
        shards: dict[int, dict[str, Any]] = {}
        for found in filter(None, named):
            shards.setdefault(int(found[1]), {})[found[2]] = recorded[found[0]]
        return [shards[number] for number in sorted(shards)]

    @property
    def metrics(self) -> Path:
        """The JSONL file of figures."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """The JSONL file of texts."""
        return self.path / "samples.jsonl"

    def write_metrics(self, stage: str, **figures: Any) -> None:
        """Add one line to the metrics."""
        with self.metrics.open("a") as file:
            file.write(json.dumps({"stage": stage, **figures}) + "\n")

    def stage(self, name: str) -> Path:
        """The folder of a stage."""
        return self.path / name

    @contextlib.contextmanager
    def claimed(
        self, identity: Mapping[str, Any], processes: PartialState, defaults: Mapping[str, Any]
    ) -> Iterator[None]:
        """Claim the folder for this run, or continue its run, and keep all other runs out.

        `defaults`: of settings that a run of an earlier release did not record.
        Raises ConfigurationDiffers, naming each field, if it holds a run with another configuration, TryAgain if
        another run is using it, and UsageError if it cannot be written.
        """
        with contextlib.ExitStack() as held:
            with processes.main_process_first():
                if processes.is_main_process:
                    try:
                        self.path.mkdir(parents=True, exist_ok=True)
                        held.enter_context(self._lock())
                        if not self.identity.exists():
                            write_json(self.identity, identity)
                    except OSError as error:
                        way_out = "choose a folder that can be written"
                        raise UsageError(f"--out {self.path}: {error.strerror}; {way_out}") from error
                self._require_same(identity, defaults)
            yield

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Lock the folder. The lock ends with this process; forked processes do not have it."""
        with (self.path / "run.lock").open("w") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                raise TryAgain(
                    f"--out {self.path}: another run is using this folder; wait until it ends, or choose another folder"
                ) from error
            yield

    def _require_same(self, identity: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        file = self.identity
        usual = {name: defaults[name] for name in (identity.keys() & defaults.keys()).difference(HASHED)}
        asked, before = json.loads(json.dumps(identity)), json.loads(json.dumps(usual)) | json.loads(file.read_text())
        ConfigurationDiffers.unless_same(file, compared(before, before), compared(asked, before))

    def finished(self, stage: str) -> dict[str, Any] | None:
        """The summary of a finished stage, or None."""
        file = self.stage(stage) / DONE
        summary: dict[str, Any] | None = json.loads(file.read_text()) if file.is_file() else None
        return summary

    def finish(self, stage: str, summary: Mapping[str, Any]) -> None:
        """Mark a stage as finished after its student is on the disk, and remove its checkpoints."""
        sync_files(self.stage(stage))
        write_json(self.stage(stage) / DONE, summary)
        for checkpoint in self.stage(stage).glob("checkpoint-*"):
            shutil.rmtree(checkpoint)

    def publish(self, stage: str) -> None:
        """Copy the stage's student to the run: RUN/config.json, RUN/model.safetensors, the tokenizer."""
        for file in self.stage(stage).iterdir():
            if file.is_file() and file.name != DONE:
                target, fresh = self.path / file.name, self.path / (file.name + ".new")
                fresh.unlink(missing_ok=True)
                try:
                    os.link(file, fresh)
                except OSError:
                    shutil.copyfile(file, fresh)
                put_in_place(fresh, target)

    def last_checkpoint(self, stage: str) -> Path | None:
        """The newest complete checkpoint; incomplete ones are removed."""
        whole: list[tuple[int, Path]] = []
        for path in self.stage(stage).glob("checkpoint-*"):
            if (path / WHOLE).is_file():
                whole.append((int(path.name.rpartition("-")[2]), path))
            else:
                shutil.rmtree(path)
        return max(whole)[1] if whole else None

    def forget_after(self, stage: str, step: int) -> None:
        """Remove the stage's lines after `step`, which a continued run writes again, and a line truncated by a kill."""
        for file in filter(Path.exists, (self.metrics, self.samples)):
            kept = []
            for line in file.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if entry.get("stage") != stage or entry["step"] <= step:
                    kept.append(line + "\n")
            replace_text(file, "".join(kept))


def compared(identity: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an identity that must not change: the hash of a checkpoint, the content of shards.

    `recorded` may be of an older release: hashes or parts that it lacks, or a SHA-256 of `start`, cannot be compared.
    """
    kept = {
        name: value
        for name, value in identity.items()
        if not re.fullmatch(r"shards_\d+_dataset", name)
        and (name in recorded or not (name in HASHED or re.fullmatch(r"shards_\d+_(parts|lengths)", name)))
    }
    for name, value in kept.items():
        if isinstance(value, dict) and "checkpoint" in value:
            before = (recorded[name] or {}).get("checkpoint", "")
            kept[name] = "a checkpoint" if re.fullmatch("[0-9a-f]{64}", before) else value["checkpoint"]
    return kept
