"""Reading a dataset by sample index, verified by default, from any place."""

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from arwkv_store.dataset.ahead import FetchAhead
from arwkv_store.dataset.index import ManifestIndex, Manifests
from arwkv_store.dataset.sampler import BLOCK_SHARDS
from arwkv_store.dataset.shard import Shard
from arwkv_store.errors import UsageError
from arwkv_store.format.columns import HeavyColumn, heavy_columns, known_columns
from arwkv_store.format.hidden_names import is_hidden_column
from arwkv_store.format.layout import DATASET_FILE
from arwkv_store.format.manifest import ShardManifest
from arwkv_store.format.sample import Sample
from arwkv_store.format.schema import DatasetInfo
from arwkv_store.format.statistics import DatasetStats, ShardStats
from arwkv_store.places.cache import FileCache
from arwkv_store.places.source import Source, source_of

MAX_OPEN_SHARDS = 64
"""Parts that stay open; each holds at most two file descriptors."""


def open_dataset(
    uri: str | Path,
    *,
    columns: Collection[str] | None = None,
    verify: bool = True,
    cache_folder: Path | None = None,
    max_cache_bytes: int | None = None,
) -> "Dataset":
    """Open the dataset at a path, `http(s)://host/v1/datasets/NAME`, `s3://`, `hf://` or another fsspec URI.

    `columns` are the heavy columns to read ("logits", "token_stats", "hidden.attn.007", or "hidden" for all hidden
    columns); None reads all; tokens and mask are always read. `verify=False` trusts the bytes: a damaged file may then
    give wrong values or end the process. Files of a remote dataset are cached in `cache_folder` (ARWKV_CACHE, default
    ~/.cache/arwkv) up to `max_cache_bytes` (ARWKV_CACHE_BYTES, in bytes or as 64G, default 64 GiB; 0 keeps only the
    file in use). The least recently used files are evicted first, and a damaged copy is fetched again. Raises NotFound,
    UsageError, UnsupportedVersion, CorruptShard, TryAgain.
    """
    source = source_of(uri, FileCache.of(cache_folder, max_cache_bytes))
    raw = source.dataset_json()
    info = DatasetInfo.from_bytes(raw, f"{source.uri}/{DATASET_FILE}")
    chosen = _chosen_columns(info, columns)
    return Dataset(source, info, ManifestIndex(source, hashlib.sha256(raw).hexdigest()), chosen, verify=verify)


class Dataset(Sequence[Sample]):
    """The committed samples of a dataset, in order of (part, row). May be pickled and forked into workers."""

    def __init__(
        self, source: Source, info: DatasetInfo, index: ManifestIndex, columns: frozenset[str], *, verify: bool
    ) -> None:
        self.info = info
        self.uri = source.uri
        self._source, self._index, self._names, self._verify = source, index, columns, verify
        self._columns = _project(info, columns)
        self._open: dict[int, Shard] = {}
        """Open parts by place, the one last read at the end."""

    def only(self, parts: NDArray[np.int64]) -> "Dataset":
        """The samples of these parts, as before the dataset grew. Raises NotFound for a part that is missing."""
        return Dataset(self._source, self.info, self._index.only(parts), self._names, verify=self._verify)

    def __len__(self) -> int:
        return int(self._index.ends[-1]) if len(self._index.ends) else 0

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        shard, row = self._place(index)
        return shard.sample(row)

    def length(self, index: int) -> int:
        """Tokens of a sample; no heavy column is read."""
        shard, row = self._place(index)
        return shard.length(row)

    def _place(self, index: int) -> tuple[Shard, int]:
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = int(np.searchsorted(self._index.ends, at, side="right"))
        return self._shard(shard), at - int(self._index.ends[shard - 1] if shard else 0)

    def __iter__(self) -> Iterator[Sample]:
        """All samples in order; of a remote dataset, the next part is fetched while one is read."""
        stop = threading.Event()
        source = self._source.ahead(stop)
        if source is None:
            # Sequence's own iterator would end at an IndexError raised while reading a sample.
            for index in range(len(self)):
                yield self[index]
            return

        with FetchAhead(self._fetching(source), stop) as ahead:
            for shard, rows in enumerate(self.shard_rows.tolist()):
                ahead.wait(shard)
                if shard + 1 < len(self._index.ends):
                    ahead.ask(shard + 1)
                for row in range(rows):
                    yield self._shard(shard).sample(row)

    def read_soon(self, indices: Iterable[int]) -> Iterator[int]:
        """The same sample indices; of a remote dataset, their parts are fetched before, in a thread.

        It looks as many indices ahead as a block of shuffled parts has (see `sampler`), so that the next block comes
        while one is used. The cache serves the processes that read; it has to hold 32 files of a size, or they are
        fetched only when they are read.
        """
        stop = threading.Event()
        source = self._source.ahead(stop, 4 * BLOCK_SHARDS)
        if source is None:
            yield from indices
            return
        block = BLOCK_SHARDS * len(self) // max(len(self._index.ends), 1)
        coming: deque[int] = deque()
        asked: deque[int] = deque(maxlen=2 * BLOCK_SHARDS)
        with FetchAhead(self._fetching(source), stop, most=BLOCK_SHARDS + 1) as ahead:
            for index in indices:
                shard = int(np.searchsorted(self._index.ends, index, side="right"))
                if shard not in asked:
                    asked.append(shard)
                    ahead.ask(shard)
                coming.append(index)
                if len(coming) > block:
                    yield coming.popleft()
            yield from coming

    def _fetching(self, source: Source) -> Callable[[int], None]:
        """What fetches the part at a place from `source`."""
        return lambda at: Shard(source, self._index.manifest(at), self._columns, verify=self._verify).fetch()

    def texts(self) -> Iterator[tuple[list[int], NDArray[np.int32], NDArray[np.bool_]]]:
        """All samples in order, some thousands at a time: their lengths, and their tokens and masks one after another.

        Faster than one sample after another where only these are needed; keeps nothing.
        """
        for at in range(len(self._index.ends)):
            columns = {**self._columns, "hidden": ()}
            yield from Shard(self._source, self._index.manifest(at), columns, verify=self._verify).texts()

    def reads(self, column: str) -> bool:
        """Whether this heavy column is read."""
        return column in self._names

    @property
    def shards(self) -> Sequence[ShardManifest]:
        """The committed parts' manifests, each read on access."""
        return Manifests(self._index)

    @property
    def parts(self) -> NDArray[np.int64]:
        """The numbers of the committed parts, in order."""
        return self._index.parts

    @property
    def tokens(self) -> int:
        """Tokens of the committed parts."""
        return int(self._index.tokens.sum())

    @property
    def shard_rows(self) -> NDArray[np.int64]:
        """Samples in each committed part, in order."""
        return np.diff(self._index.ends, prepend=0)

    @property
    def shard_tokens(self) -> NDArray[np.int64]:
        """Tokens in each committed part, in order."""
        return self._index.tokens

    def beside(self) -> dict[str, bytes]:
        """The files next to dataset.json by name: the tokenizer's, and the producer's report."""
        return self._source.beside()

    def stats(self) -> DatasetStats:
        """Statistics of all committed parts, from their manifests."""
        manifests = list(self.shards)
        merged = ShardStats.merged(manifest.stats for manifest in manifests)
        return DatasetStats(
            **merged.model_dump(),
            shards=len(manifests),
            parts=self.info.corpus.parts or len(manifests),
            size_bytes=sum(manifest.size_bytes for manifest in manifests),
        )

    def _shard(self, at: int) -> Shard:
        # Single operations of a dict are atomic between threads, unlike those of an OrderedDict, and a lock would not
        # survive a fork. Two threads may open one part twice; the later copy stays.
        shard = self._open.pop(at, None)
        if shard is None:
            shard = Shard(self._source, self._index.manifest(at), self._columns, verify=self._verify)
        self._open[at] = shard
        if len(self._open) > MAX_OPEN_SHARDS:
            for eldest in list(self._open)[:-MAX_OPEN_SHARDS]:
                self._open.pop(eldest, None)
        return shard

    def __getstate__(self) -> dict[str, Any]:
        # Open files and codecs belong to a process; the worker opens its own.
        return {**self.__dict__, "_open": {}, "_columns": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._columns = _project(self.info, self._names)


def _chosen_columns(info: DatasetInfo, asked: Collection[str] | None) -> frozenset[str]:
    known = known_columns(info.capture)
    if asked is None:
        return frozenset(known)
    if isinstance(asked, str):
        raise UsageError(f"columns={asked!r}: give a list of names, [{asked!r}]")
    chosen: set[str] = set()
    for name in asked:
        matching = [column for column in known if column == name or (name == "hidden" and is_hidden_column(column))]
        if not matching:
            raise UsageError(f"column {name!r} is not captured; the dataset has {', '.join(known)}")
        chosen.update(matching)
    return frozenset(chosen)


def _project(info: DatasetInfo, names: frozenset[str]) -> dict[str, tuple[HeavyColumn, ...]]:
    return {
        kind: tuple(column for column in columns if column.name in names)
        for kind, columns in heavy_columns(info).items()
    }
