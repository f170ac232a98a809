"""The committed parts of a dataset: their verified manifests, and a small index in memory."""

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Self, overload

import numpy as np
from numpy.typing import NDArray

from arwkv_store.errors import CorruptShard, NotFound
from arwkv_store.format.layout import manifest_uri
from arwkv_store.format.manifest import ShardManifest
from arwkv_store.format.schema import READ_VERSIONS, refuse_unknown_version
from arwkv_store.format.seal import require_intact, unsealed
from arwkv_store.format.summary import SUMMARY_FILE, Present, Summary
from arwkv_store.places.source import Source

NO_SUMMARY = Summary(*np.zeros((4, 0), np.int64))


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
    """The committed parts and their numbers of rows: 24 bytes per part, for manifests of any size.

    A summary of manifests spares reading those that are as it saw them. `exact` lists every part, however many.
    """

    def __init__(self, source: Source, dataset_hash: str, *, exact: bool = False) -> None:
        self._source, self._dataset_hash = source, dataset_hash
        known = Summary.from_bytes(source.summary(), dataset_hash) or NO_SUMMARY
        present = source.present(0 if exact else known.unbroken)
        if present is None:
            parts, rows, tokens = np.array(list(self._read(None)), np.int64).reshape(-1, 3).T
            self.summary = Summary(parts, rows, tokens, np.zeros_like(parts))
        else:
            self.summary = self._completed(known, present)
        self._unlisted = 0 if present is None else present.unlisted
        self._take(self.summary)

    def _take(self, summary: Summary) -> None:
        self.summary = summary
        self.parts, self.tokens = summary.parts, summary.tokens
        self.ends: NDArray[np.int64] = np.cumsum(summary.rows)

    def only(self, wanted: NDArray[np.int64]) -> Self:
        """An index of these parts alone. Raises NotFound for parts that are missing."""
        missing = np.setdiff1d(wanted, self.parts)
        if len(missing):
            raise NotFound(
                f"{self._source.uri}: {len(missing)} of {len(wanted)} parts are missing, the first is "
                f"{self._where(int(missing[0]))}; make them again"
            )
        kept, fewer = np.isin(self.parts, wanted), copy.copy(self)
        fewer._take(Summary(*(getattr(self.summary, column.name)[kept] for column in fields(Summary))))
        return fewer

    def _completed(self, known: Summary, present: Present) -> Summary:
        """The present parts: what is known of those whose manifests did not change, and the others' manifests."""
        parts, marks = np.array(present.marks, np.int64).reshape(-1, 2).T
        kept = known.parts[: present.unlisted]
        at = np.minimum(np.searchsorted(known.parts, parts), max(len(known.parts) - 1, 0))
        same = (known.parts[at] == parts) & (known.marks[at] == marks) if len(known.parts) else parts < 0
        rows, tokens = np.zeros_like(parts), np.zeros_like(parts)
        rows[same], tokens[same] = known.rows[at[same]], known.tokens[at[same]]
        read = np.array(list(self._read(parts[~same].tolist())), np.int64).reshape(-1, 3)
        rows[~same], tokens[~same] = read[:, 1], read[:, 2]
        return Summary(
            np.concatenate([kept, parts]),
            np.concatenate([known.rows[: len(kept)], rows]),
            np.concatenate([known.tokens[: len(kept)], tokens]),
            np.concatenate([known.marks[: len(kept)], marks]),
        )

    def _read(self, parts: Sequence[int] | None) -> Iterator[tuple[int, int, int]]:
        """(part, rows, tokens) of every part, or of these, from their verified manifests."""
        for part, raw in self._source.manifests(parts):
            leading = _LEADING.match(raw)
            if leading and int(leading[1]) == part and leading[4] == self._dataset_hash.encode():
                require_intact(raw, self._where(part))
                yield part, int(leading[2]), int(leading[3])
            else:
                manifest = self._validated(part, raw)
                yield part, manifest.rows, manifest.tokens

    def manifest(self, at: int) -> ShardManifest:
        part = int(self.parts[at])
        try:
            manifest = self._validated(part, self._source.manifest(part))
        except NotFound as error:
            raise CorruptShard(f"{self._where(part)}: removed; {self._way_out(part)}") from error
        if (manifest.rows, manifest.tokens) != (self.summary.rows[at], self.tokens[at]):
            raise CorruptShard(f"{self._where(part)}: changed since the dataset was opened; {self._way_out(part)}")
        return manifest

    def _way_out(self, part: int) -> str:
        if part < self._unlisted:
            return f'run "store reindex {self._source.uri}", which writes {SUMMARY_FILE} anew, and open it again'
        return "open it again"

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
