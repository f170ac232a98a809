"""What goes wrong with a student's run, made to happen."""

import json
from pathlib import Path

import pytest

from arwkv_student.settings import TrainSettings


def train_until(settings: TrainSettings, step: int, stage: str | None = None) -> None:
    """Train, and die after this step (of this stage), with nothing tidied up."""
    from arwkv_student.training.pipeline import train
    from arwkv_student.training.run_log import RunLog

    class Killed(Exception):
        pass

    original = RunLog.on_step_end

    def killed(self: RunLog, args: object, state: object, control: object, **more: object) -> None:
        original(self, args, state, control, **more)
        if stage in (None, self.plan.name) and state.global_step == step:  # type: ignore[attr-defined] # TrainerState
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "on_step_end", killed)
        with pytest.raises(Killed):
            train(settings)


def swap_two_tokens(folder: Path) -> None:
    """Make the folder's tokenizer another one: its last two tokens change their ids."""
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    words = tokenizer["model"]["vocab"]
    (a, i), (b, j) = list(words.items())[-2:]
    words[a], words[b] = j, i
    file.write_text(json.dumps(tokenizer))
