"""How close a fitted student comes to its teacher when some of its layers attend again.

The student has a time mixer in every layer. In the layers that keep their attention, the mixer's output is replaced by
the base's attention output for the same input, so that any set of layers can be tried without another model. Mixers
still hand on the first layer's value, also from a layer that attends.
Shape legend: B batch, T time, C model width.
"""

import contextlib
import functools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from arwkv_store import Dataset
from arwkv_store.commands.progress import Progress
from arwkv_student.bases.attention import BaseAttention
from arwkv_student.evaluation.fidelity import evaluate
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.model.time_mix import TimeMix


@dataclass
class KeptLayers:
    """KL(teacher ‖ student) of a fitted student by the layers that keep attention."""

    model: ArwkvForCausalLM
    attention: BaseAttention
    dataset: Dataset
    tokens: int
    """A try reads the first samples that hold so many tokens."""
    batch_size: int
    bf16: bool
    progress: Progress
    tokens_read: int = field(default=0, init=False)
    """By all tries so far."""

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Tokens of each sample that a try reads."""
        lengths: list[int] = []
        while sum(lengths) < self.tokens and len(lengths) < len(self.dataset):
            lengths.append(len(self.dataset[len(lengths)].tokens))
        return lengths

    def kl(self, kept: Collection[int]) -> float:
        """In nats per position that counts."""
        with attending(self.model, self.attention, kept):
            figures = evaluate(
                self.model, self.dataset, batch_size=self.batch_size, samples=len(self.lengths), bf16=self.bf16
            )
        self.tokens_read += sum(self.lengths)
        self.progress.advance(sum(self.lengths))
        return round(figures["kl"], 5)

    def kl_with_each(self, kept: Sequence[int] = (), among: Sequence[int] | None = None) -> dict[int, float]:
        """By the layer that attends besides `kept`: each of the others, or of those in `among`."""
        layers = self.model.config.time_mix_layers if among is None else among
        return {layer: self.kl({*kept, layer}) for layer in layers if layer not in kept}

    def kl_without_each(self) -> dict[int, float]:
        """By the layer that mixes time while all others attend."""
        layers = self.model.config.time_mix_layers
        return {layer: self.kl({*layers} - {layer}) for layer in layers}


@contextlib.contextmanager
def attending(model: ArwkvForCausalLM, attention: BaseAttention, kept: Collection[int]) -> Iterator[None]:
    """While the block runs, the layers `kept` output their base's attention."""

    def attend(layer: int, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (attention.attend(layer, inputs[0]), *output[1:])

    mixers = [module for module in model.modules() if isinstance(module, TimeMix) and module.layer in kept]
    hooks = [
        mixer.register_forward_hook(lambda mixer, inputs, output: attend(mixer.layer, inputs, output))
        for mixer in mixers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
