"""The committed parts of a dataset: their verified manifests, and a small index in memory."""

import re
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from arwkv_store.errors import CorruptShard
from arwkv_store.format.layout import manifest_uri
from arwkv_store.format.manifest import ShardManifest
from arwkv_store.format.schema import READ_VERSIONS, refuse_unknown_version
from arwkv_store.format.seal import require_intact, unsealed
from arwkv_store.places.source import Source


def manifest_of(part: int, raw: bytes, dataset_hash: str, where: str) -> ShardManifest:
    """A verified manifest. Raises UnsupportedVersion; CorruptShard unless it belongs to this part of this dataset."""
    document = unsealed(raw, where)
    refuse_unknown_version(document, where)
    if document.get("part") != part or document.get("dataset_hash") != dataset_hash:
        raise CorruptShard(
            f"{where}: is of part {document.get('part')} of dataset {document.get('dataset_hash')}, "
            f"not of part {part} of {dataset_hash}; dataset.json or the manifest was replaced"
        )
    return ShardManifest.from_document(document, where)


# Our writer puts these scalars first. Matching them in the verified bytes takes a seventh of the time of parsing the
# whole manifest; a manifest in another order is parsed.
_LEADING = re.compile(
    rb'\{"format_version":(?:%s),"part":(\d{1,12}),"rows":(\d{1,12}),"tokens":(\d{1,12}),"first_sample_id":\d+,'
    rb'"last_sample_id":\d+,"dataset_hash":"([0-9a-f]{64})"' % b"|".join(b"%d" % version for version in READ_VERSIONS)
)


class ManifestIndex:
    """The committed parts and their numbers of rows: 24 bytes per part, for manifests of any size."""

    def __init__(self, source: Source, dataset_hash: str) -> None:
        self._source, self._dataset_hash = source, dataset_hash
        numbers: list[tuple[int, int, int]] = []
        for part, raw in source.manifests():
            leading = _LEADING.match(raw)
            if leading and int(leading[1]) == part and leading[4] == dataset_hash.encode():
                require_intact(raw, self._where(part))
                numbers.append((part, int(leading[2]), int(leading[3])))
            else:
                manifest = self._validated(part, raw)
                numbers.append((part, manifest.rows, manifest.tokens))
        table = np.array(numbers, np.int64).reshape(-1, 3)
        self.parts, self.tokens = table[:, 0].copy(), table[:, 2].copy()
        self.ends: NDArray[np.int64] = np.cumsum(table[:, 1])

    def manifest(self, at: int) -> ShardManifest:
        part = int(self.parts[at])
        manifest = self._validated(part, self._source.manifest(part))
        if manifest.rows != np.diff(self.ends, prepend=0)[at]:
            raise CorruptShard(f"{self._where(part)}: changed since the dataset was opened; open it again")
        return manifest

    def manifests(self) -> Iterator[ShardManifest]:
        """Every manifest in order, streamed: a remote source sends many at a time."""
        known = set(self.parts.tolist())
        for part, raw in self._source.manifests():
            if part in known:
                yield self._validated(part, raw)

    def _validated(self, part: int, raw: bytes) -> ShardManifest:
        return manifest_of(part, raw, self._dataset_hash, self._where(part))

    def _where(self, part: int) -> str:
        return manifest_uri(self._source.uri, part)


class Manifests(Sequence[ShardManifest]):
    def __init__(self, index: ManifestIndex) -> None:
        self._index = index

    def __len__(self) -> int:
        return len(self._index.parts)

    @overload
    def __getitem__(self, at: int) -> ShardManifest: ...
    @overload
    def __getitem__(self, at: slice) -> list[ShardManifest]: ...
    def __getitem__(self, at: int | slice) -> ShardManifest | list[ShardManifest]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(f"shard {at} of {len(self)}")
        return self._index.manifest(at % len(self))

    def __iter__(self) -> Iterator[ShardManifest]:
        return self._index.manifests()
