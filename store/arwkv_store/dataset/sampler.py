"""The order in which training sees samples: a pure function of (seed, epoch), sliced by global step.

The sampler has no state between steps or processes, so a resume, another number of workers or another world size cannot
change the samples of a step.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from arwkv_store.errors import UsageError

BLOCK_SHARDS = 8
"""Number of shards that are shuffled together: enough to mix well, and few enough to stay open and cached."""


class ShardSampler:
    """Yields for each step the sample indices of this rank's share of the global batch.

    The epochs form one stream of sample indices, and step s takes positions s*batch_size to (s+1)*batch_size of it. A
    batch may contain samples of two epochs; every epoch has every sample once. Usable as a DataLoader's
    `batch_sampler`. To resume after step s, create it again with `start_step=s`.
    """

    def __init__(
        self,
        shard_rows: Sequence[int] | NDArray[np.int64],
        *,
        batch_size: int,
        epochs: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        shuffle: bool = True,
        block_shards: int = BLOCK_SHARDS,
    ) -> None:
        """`shard_rows` is `dataset.shard_rows`; `batch_size` counts all ranks together. Raises UsageError."""
        if batch_size <= 0 or batch_size % world_size:
            raise UsageError(f"batch size {batch_size} is not a multiple of the world size {world_size}")
        if not 0 <= rank < world_size:
            raise UsageError(f"rank {rank} with world size {world_size}; give a rank from 0 to {world_size - 1}")
        self._rows = np.asarray(shard_rows, np.int64)
        self._samples = int(self._rows.sum())
        if epochs * self._samples < batch_size:
            raise UsageError(f"{epochs} epochs of {self._samples} samples are less than one batch of {batch_size}")
        self._batch_size, self._epochs, self._seed = batch_size, epochs, seed
        self._rank, self._world_size, self._start_step = rank, world_size, start_step
        self._shuffle, self._block_shards = shuffle, block_shards

    @property
    def steps(self) -> int:
        """Number of steps from the first to the last; an incomplete batch at the end is left out."""
        return self._epochs * self._samples // self._batch_size

    def __len__(self) -> int:
        return max(self.steps - self._start_step, 0)

    def __iter__(self) -> Iterator[list[int]]:
        share = self._batch_size // self._world_size
        epoch, order = -1, np.empty(0, np.int64)
        for step in range(self._start_step, self.steps):
            first = step * self._batch_size + self._rank * share
            batch: list[int] = []
            for position in range(first, first + share):
                if position // self._samples != epoch:
                    epoch = position // self._samples
                    order = self.order(epoch)
                batch.append(int(order[position % self._samples]))
            yield batch

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The epoch's permutation of all sample indices: shards in random order, shuffled within blocks of them."""
        if not self._shuffle:
            return np.arange(self._samples)
        random = np.random.Generator(np.random.PCG64([self._seed, epoch]))
        starts = np.cumsum(self._rows) - self._rows
        shards = random.permutation(len(self._rows))
        blocks = []
        for at in range(0, len(shards), self._block_shards):
            some = shards[at : at + self._block_shards]
            indices = np.concatenate([np.arange(starts[shard], starts[shard] + self._rows[shard]) for shard in some])
            blocks.append(random.permutation(indices))
        return np.concatenate(blocks)
