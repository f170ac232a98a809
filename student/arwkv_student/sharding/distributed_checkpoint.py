"""Checkpoints of sharded students by torch's DCP: every process writes its own share, while training goes on."""

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from transformers import AutoConfig, PreTrainedModel

from arwkv_student.model.loading import empty_student

SHARES = "shares"
"""Folder of a checkpoint that holds DCP's files."""


class BackgroundCheckpoints:
    """Writes shares of weights and optimizer state in the background, of one checkpoint at a time."""

    def __init__(self) -> None:
        # Of its own, because training exchanges gradients meanwhile, and on CPUs, where the copies are.
        self._group = torch.distributed.new_group(backend="gloo")
        self._pending: Future[Any] | None = None
        self._marked = threading.Event()
        self._marked.set()  # nothing is to be marked yet

    def write(self, checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Copy the shares to main memory, and begin to write them; all processes must call it."""
        self.wait()
        state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
        save = async_save(state, checkpoint_id=checkpoint / SHARES, process_group=self._group)
        assert isinstance(save, Future), "the copies are made before this returns"
        self._pending = save

    def when_written(self, mark: Callable[[], None]) -> None:
        """Call `mark` once every process has written its share; at once if they have."""

        def written(save: Future[Any]) -> None:
            try:
                if save.exception() is None:
                    mark()
            finally:
                self._marked.set()

        assert self._pending is not None, "a checkpoint is being written"
        self._marked.clear()
        self._pending.add_done_callback(written)

    def wait(self) -> None:
        """Until the last checkpoint is written and marked. Raises what stopped it."""
        if self._pending is not None:
            self._pending.result()
            self._marked.wait()  # who waits for a result hears of it before those who are called back
            self._pending = None


def has_shares(checkpoint: Path) -> bool:
    """Whether the checkpoint was written by `BackgroundCheckpoints`."""
    return (checkpoint / SHARES / ".metadata").is_file()


def load_shares(checkpoint: Path, model: nn.Module, *, alone: bool = False) -> None:
    """Read the weights of a model of any number of processes, sharded or not. `alone`: in this process only."""
    state = get_model_state_dict(model)
    _load({"model": state}, checkpoint, alone)
    set_model_state_dict(model, state)


def load_optimizer_shares(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The same of the optimizer's state."""
    state = get_optimizer_state_dict(model, optimizer)
    _load({"optimizer": state}, checkpoint)
    set_optimizer_state_dict(model, optimizer, state)


def _load(state: dict[str, Any], checkpoint: Path, alone: bool = False) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is meant to be
        load(state, checkpoint_id=checkpoint / SHARES, no_dist=alone)


def whole_student(checkpoint: Path) -> PreTrainedModel:
    """The student of a checkpoint of shares, in fp32 and main memory."""
    model = empty_student(AutoConfig.from_pretrained(checkpoint))
    model._apply(lambda tensor: torch.empty_like(tensor, device="cpu") if tensor.is_meta else tensor)
    model.tie_weights()
    load_shares(checkpoint, model, alone=True)
    return model
