"""Which samples of a dataset a run reads: those of the parts that were there when it began.

A dataset may grow. The run goes on with what it began with, and refuses what is no longer there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from arwkv_store import Dataset
from arwkv_store.errors import ConfigurationDiffers
from arwkv_student.first_process import say_once


@dataclass(frozen=True)
class Extent:
    """Parts of a dataset, and how long each one is."""

    ranges: tuple[tuple[int, int], ...]
    """First and last number of the parts that follow one another."""
    samples: int
    lengths: str
    """Hash of each part's rows and tokens."""

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """All that is there."""
        runs = np.split(dataset.parts, np.flatnonzero(np.diff(dataset.parts) != 1) + 1)
        lengths = np.stack([dataset.shard_rows, dataset.shard_tokens]).astype("<i8").tobytes()
        return cls(tuple((int(run[0]), int(run[-1])) for run in runs), len(dataset), xxhash.xxh3_64_hexdigest(lengths))

    @property
    def parts(self) -> NDArray[np.int64]:
        """The numbers of the parts, in order."""
        return np.concatenate([np.arange(first, last + 1) for first, last in self.ranges])

    def content(self) -> dict[str, Any]:
        """What a run records of it."""
        return {"samples": self.samples, "parts": self.ranges, "lengths": self.lengths}

    @classmethod
    def recorded(cls, content: Mapping[str, Any]) -> Self | None:
        """Inverse of `content`; None for a run of a release that recorded only the number of samples."""
        if "parts" not in content:
            return None
        return cls(tuple((first, last) for first, last in content["parts"]), content["samples"], content["lengths"])


def continued(dataset: Dataset, begun: Extent, run: Path) -> Dataset:
    """The samples that the run began with; says so if the dataset has grown since.

    Raises ConfigurationDiffers unless its parts are there as they were.
    """
    began = f"{run} began with {len(begun.parts)} parts of {dataset.uri} ({begun.samples:,} samples)"
    way_out = "restore the dataset, or begin a new run with another --out"
    missing = np.setdiff1d(begun.parts, dataset.parts)
    if len(missing):
        raise ConfigurationDiffers(f"{began}; {len(missing)} are missing now, the first is {missing[0]}; {way_out}")
    beginning = dataset.only(begun.parts)
    if Extent.of(beginning) != begun:
        raise ConfigurationDiffers(f"{began}; they hold other samples now; {way_out}")
    if len(beginning) < len(dataset):
        say_once(f"{began}, which has grown to {len(dataset):,}; it goes on with those; for all, begin a new run")
    return beginning
