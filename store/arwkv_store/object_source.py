"""Reading a dataset from an object store or the Hub."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from arwkv_store.cache import FileCache
from arwkv_store.errors import NotFound
from arwkv_store.layout import DATASET_FILE, SHARDS_FOLDER, TOKENIZER_FILES, committed_parts, manifest_name
from arwkv_store.manifest import FileInfo
from arwkv_store.object_folder import ObjectFolder

PIECE_BYTES = 8 << 20
MANIFESTS_AT_ONCE = 128


class ObjectSource:
    """Reads through fsspec."""

    def __init__(self, uri: str, cache: FileCache) -> None:
        self._folder = ObjectFolder(uri)
        self.uri = self._folder.uri
        self._cache = cache

    def dataset_json(self) -> bytes:
        """The bytes of dataset.json. Raises NotFound."""
        return self._folder.read(DATASET_FILE)

    def beside(self) -> dict[str, bytes]:
        """The tokenizer's files that are there."""
        found: dict[str, bytes] = {}
        for name in TOKENIZER_FILES:
            with contextlib.suppress(NotFound):
                found[name] = self._folder.read(name)
        return found

    def manifests(self) -> Iterator[tuple[int, bytes]]:
        """(part, bytes) of every committed part, in order, many requests at once."""
        parts = sorted(object_parts(self._folder))
        for at in range(0, len(parts), MANIFESTS_AT_ONCE):
            some = parts[at : at + MANIFESTS_AT_ONCE]
            paths = {part: self._folder.path(f"{SHARDS_FOLDER}/{manifest_name(part)}") for part in some}
            found = self._read_many(list(paths.values()))
            for part in some:
                yield part, found[paths[part]]

    def manifest(self, part: int) -> bytes:
        """The bytes of one manifest."""
        return self._folder.read(f"{SHARDS_FOLDER}/{manifest_name(part)}")

    def data_path(self, part: int, kind: str, file: FileInfo) -> Path:
        """The file's verified copy in the cache, fetched if need be."""
        name = f"{SHARDS_FOLDER}/{file.name}"

        def pieces(offset: int) -> Iterator[bytes]:
            for start in range(offset, file.size_bytes, PIECE_BYTES):
                end = min(start + PIECE_BYTES, file.size_bytes)
                yield self._folder.once(partial(self._folder.piece, name, start, end), name)

        return self._cache.fetch(file, pieces, f"{self.uri}/{name}")

    def _read_many(self, paths: list[str]) -> dict[str, bytes]:
        """The content of each path; asked for all at once, and again one by one where that failed."""
        filesystem = self._folder.filesystem()
        found = self._folder.attempt(lambda: filesystem.cat(paths, on_error="return"), SHARDS_FOLDER)
        # fsspec answers a single path with its content alone.
        answers = found if isinstance(found, dict) else {paths[0]: found}
        return {
            path: answer
            if isinstance(answer, bytes)
            else self._folder.read(f"{SHARDS_FOLDER}/{path.rsplit('/', 1)[-1]}")
            for path, answer in answers.items()
        }


def object_parts(folder: ObjectFolder) -> set[int]:
    """The parts that have a manifest there."""
    path = folder.path(SHARDS_FOLDER)
    try:
        names = folder.attempt(lambda: folder.filesystem().ls(path, detail=False, refresh=True), SHARDS_FOLDER)
    except NotFound:
        return set()
    return committed_parts(name.rsplit("/", 1)[-1] for name in names)
