"""Reading a dataset from an object store or the Hub."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import xxhash

from arwkv_store.errors import NotFound, UsageError
from arwkv_store.format.layout import BESIDE_FILES, DATASET_FILE, SHARDS_FOLDER, committed_parts, manifest_name, part_of
from arwkv_store.format.manifest import FileInfo
from arwkv_store.format.seal import MAX_DOCUMENT_BYTES
from arwkv_store.format.summary import MAX_SUMMARY_BYTES, SUMMARY_FILE, Present, mark
from arwkv_store.places.cache import AHEAD_SHARE, FileCache, RangedFile, require_size
from arwkv_store.places.object_folder import ObjectFolder
from arwkv_store.places.object_listing import listed

PIECE_BYTES = 8 << 20
PIECES_AT_ONCE = 4
MANIFESTS_AT_ONCE = 128
MAX_TOKENIZER_BYTES = 256 << 20
LISTED_PARTS = 20_000
"""Up to here, every part of a summary is looked for in a list: 40 requests."""
SIX_DIGITS = 1_000_000


class ObjectSource:
    """Reads through fsspec."""

    def __init__(self, uri: str, cache: FileCache, folder: ObjectFolder | None = None) -> None:
        self._folder = folder or ObjectFolder(uri)
        self.uri = self._folder.uri
        self._cache = cache

    def dataset_json(self) -> bytes:
        """The bytes of dataset.json. Raises NotFound."""
        return self._folder.read(DATASET_FILE)

    def beside(self) -> dict[str, bytes]:
        """The tokenizer's files that are there, the corpus report, and people's notes."""
        found: dict[str, bytes] = {}
        for name in BESIDE_FILES:
            with contextlib.suppress(NotFound):
                found[name] = self._folder.read(name, MAX_TOKENIZER_BYTES)
            if len(found.get(name, b"")) > MAX_TOKENIZER_BYTES:
                raise UsageError(
                    f"{self.uri}/{name}: larger than {MAX_TOKENIZER_BYTES} bytes, too large for a tokenizer; check it"
                )
        return found

    def summary(self) -> bytes:
        """The bytes of the summary of manifests; none if there is no summary."""
        try:
            return self._folder.read(SUMMARY_FILE, MAX_SUMMARY_BYTES)
        except NotFound:
            return b""

    def present(self, known: int) -> Present:
        """The committed parts, one request for each 1,000 objects.

        Where `known` are so many that listing them takes long, only those from there on are listed.
        """
        unlisted = known if self._folder.lists_from_a_name and LISTED_PARTS <= known <= SIX_DIGITS else 0
        after = f"{SHARDS_FOLDER}/{manifest_name(unlisted - 1)}" if unlisted else ""
        found = []
        for entry in listed(self._folder, f"{SHARDS_FOLDER}/part-", after):
            named = part_of(entry.name.rpartition("/")[2])
            if named is not None and named[1] == "json":
                found.append((named[0], mark(entry.size_bytes, xxhash.xxh3_64_intdigest(entry.mark.encode()))))
        found.sort()
        # Numbers of seven digits are among those of six in the order of names: some may have been left out.
        return self.present(0) if unlisted and found and found[-1][0] >= SIX_DIGITS - 1 else Present(found, unlisted)

    def manifests(self, parts: Sequence[int] | None = None) -> Iterator[tuple[int, bytes]]:
        """(part, bytes) of every committed part, or of these, in order, many requests at once."""
        if parts is None:
            parts = sorted(object_parts(self._folder))
        for at in range(0, len(parts), MANIFESTS_AT_ONCE):
            some = parts[at : at + MANIFESTS_AT_ONCE]
            yield from zip(
                some, self._read_many([f"{SHARDS_FOLDER}/{manifest_name(part)}" for part in some]), strict=True
            )

    def manifest(self, part: int) -> bytes:
        """The bytes of one manifest."""
        return self._folder.read(f"{SHARDS_FOLDER}/{manifest_name(part)}")

    def data_path(self, part: int, kind: str, file: FileInfo) -> Path:
        """The file's verified copy in the cache, fetched if need be."""
        name = f"{SHARDS_FOLDER}/{file.name}"
        return self._cache.fetch(file, partial(self._pieces, file), f"{self.uri}/{name}")

    def data_ranges(self, part: int, kind: str, file: FileInfo) -> RangedFile | None:
        """A copy in the cache that is fetched range by range."""
        return self._cache.ranged(file, partial(self._pieces, file), f"{self.uri}/{SHARDS_FOLDER}/{file.name}")

    def _pieces(self, file: FileInfo, offset: int, end: int | None) -> Iterator[bytes]:
        name = f"{SHARDS_FOLDER}/{file.name}"
        if end is None or offset == 0:
            size_bytes = self._folder.once(partial(self._folder.size_bytes, name), name)
            require_size(f"{self.uri}/{name}", file, size_bytes)
        end = file.size_bytes if end is None else end
        starts = range(offset, end, PIECE_BYTES)
        for at in range(0, len(starts), PIECES_AT_ONCE):
            some = starts[at : at + PIECES_AT_ONCE]
            yield from self._folder.ranges(name, some, [min(start + PIECE_BYTES, end) for start in some])

    def forget(self, file: FileInfo) -> bool:
        """Remove the copy in the cache."""
        self._cache.forget(file)
        return True

    def ahead(self, stop: threading.Event, share: int = AHEAD_SHARE) -> "ObjectSource":
        """A source whose cache stops fetching when it is told to."""
        return ObjectSource(self.uri, self._cache.ahead(stop, share), self._folder)

    def _read_many(self, names: list[str]) -> list[bytes]:
        """The content of each document; all are requested at once, and failed ones again one by one."""
        n = len(names)
        read = partial(self._folder.cat_ranges, names, [0] * n, [MAX_DOCUMENT_BYTES + 1] * n)
        answers = self._folder.attempt(read, SHARDS_FOLDER)
        return [
            answer if isinstance(answer, bytes) else self._folder.read(name)
            for name, answer in zip(names, answers, strict=True)
        ]


def object_parts(folder: ObjectFolder) -> set[int]:
    """The parts that have a manifest there."""
    path = folder.path(SHARDS_FOLDER)
    try:
        names = folder.attempt(lambda: folder.filesystem().ls(path, detail=False, refresh=True), SHARDS_FOLDER)
    except NotFound:
        return set()
    return committed_parts(name.rsplit("/", 1)[-1] for name in names)
