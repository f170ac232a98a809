"""Packed batches of equal work: each step's samples, dealt to processes and batches by their tokens."""

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import torch
from transformers.trainer_pt_utils import BatchRebalanceSampler

Pick = TypeVar("Pick")


def dealt(lengths: Sequence[int], rows: int) -> list[list[int]]:
    """Places of `lengths` in `rows` rows of about as many tokens, the fullest row first; a row's places rise.

    The longest sample goes first, each to the row with the fewest tokens (Graham's rule: the fullest row has at most
    4/3 of the least possible). No row is empty if there are as many samples.
    """
    filled: list[tuple[int, int, list[int]]] = [(0, row, []) for row in range(rows)]
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        tokens, row, places = filled[0]
        heapq.heapreplace(filled, (tokens + lengths[place], row, [*places, place]))
    return [sorted(places) for _, _, places in sorted(filled, key=lambda row: (-row[0], row[1]))]


class EqualWork(BatchRebalanceSampler, Generic[Pick]):  # type: ignore[misc] # transformers is untyped
    """The batches of one process. A step has the same samples as without, so that its loss is the same mean.

    Rows that are about as full are read at the same time: transformers' own sampler of this kind does the same for
    padded batches, and its Trainer leaves the batches of both as they are.
    """

    def __init__(
        self,
        picks: torch.utils.data.Sampler[Pick],
        length_of: Callable[[Pick], int],
        *,
        per_step: int,
        batches: int,
        rank: int,
        processes: int,
    ) -> None:
        """`picks`: `per_step` for each step; `batches`: of each process in a step."""
        self._picks, self._length_of, self._per_step = picks, length_of, per_step
        self._batches, self._rank, self._processes = batches, rank, processes

    def __len__(self) -> int:
        return len(self._picks) // self._per_step * self._batches  # type: ignore[arg-type] # all of ours have a length

    def __iter__(self) -> Iterator[list[Pick]]:
        picks = iter(self._picks)
        while step := list(itertools.islice(picks, self._per_step)):
            rows = dealt([self._length_of(pick) for pick in step], self._batches * self._processes)
            for row in rows[self._rank :: self._processes]:
                yield [step[place] for place in row]

    def set_epoch(self, epoch: int) -> None:
        """The order is one stream over all epochs."""
