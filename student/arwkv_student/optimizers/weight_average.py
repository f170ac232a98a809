"""`--ema`: an exponential moving average of the weights, which is evaluated and saved in their place."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

FILE = "average.safetensors"
"""In a checkpoint's folder, beside the weights that training goes on from."""


class WeightAverage:
    """Of the parameters that train: after step n, average ← d·average + (1 − d)·weights.

    d is the smaller of `decay` and (1 + n) / (10 + n), so that a short run forgets its start (as in TensorFlow's
    ExponentialMovingAverage).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.average = {name: weight.detach().clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """After an optimizer step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_([*self.average.values()], [*self.weights.values()], 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """While the block runs, the model has the average as its weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def keep(self) -> None:
        """Make the average the model's weights, at the end of a stage."""
        for name, weight in self.weights.items():
            weight.copy_(self.average[name])

    def save(self, checkpoint: Path) -> None:
        """Into a checkpoint's folder."""
        save_file(self.average, checkpoint / FILE)

    @torch.no_grad()
    def load(self, checkpoint: Path, steps: int) -> None:
        """From a checkpoint's folder, written after so many steps."""
        self.steps = steps
        for name, average in load_file(checkpoint / FILE).items():
            self.average[name].copy_(average)

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, weight in self.weights.items():
            own = weight.clone()
            weight.copy_(self.average[name])
            self.average[name].copy_(own)
