"""Reading a dataset from an object store or the Hub."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from arwkv_store.cache import FileCache
from arwkv_store.errors import NotFound, UsageError
from arwkv_store.layout import DATASET_FILE, SHARDS_FOLDER, TOKENIZER_FILES, committed_parts, manifest_name
from arwkv_store.manifest import FileInfo
from arwkv_store.object_folder import ObjectFolder
from arwkv_store.seal import MAX_DOCUMENT_BYTES

PIECE_BYTES = 8 << 20
MANIFESTS_AT_ONCE = 128
MAX_TOKENIZER_BYTES = 256 << 20


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
                found[name] = self._folder.read(name, MAX_TOKENIZER_BYTES)
            if len(found.get(name, b"")) > MAX_TOKENIZER_BYTES:
                raise UsageError(f"{self.uri}/{name}: larger than {MAX_TOKENIZER_BYTES} bytes; no tokenizer is")
        return found

    def manifests(self) -> Iterator[tuple[int, bytes]]:
        """(part, bytes) of every committed part, in order, many requests at once."""
        sizes = listed(self._folder)
        parts = sorted(committed_parts(sizes))
        for at in range(0, len(parts), MANIFESTS_AT_ONCE):
            some = parts[at : at + MANIFESTS_AT_ONCE]
            names = [manifest_name(part) for part in some if sizes[manifest_name(part)] <= MAX_DOCUMENT_BYTES]
            found = self._read_many([self._folder.path(f"{SHARDS_FOLDER}/{name}") for name in names])
            for part in some:
                yield part, found.get(manifest_name(part)) or self.manifest(part)

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
        """By name the content of each path, asked for all at once; what failed is left out."""
        if not paths:
            return {}
        filesystem = self._folder.filesystem()
        found = self._folder.attempt(lambda: filesystem.cat(paths, on_error="return"), SHARDS_FOLDER)
        # fsspec answers a single path with its content alone.
        answers = found if isinstance(found, dict) else {paths[0]: found}
        return {path.rsplit("/", 1)[-1]: answer for path, answer in answers.items() if isinstance(answer, bytes)}


def listed(folder: ObjectFolder) -> dict[str, int]:
    """Names and sizes in bytes of what lies in the folder's `shards/`."""
    path = folder.path(SHARDS_FOLDER)
    try:
        found = folder.attempt(lambda: folder.filesystem().ls(path, detail=True, refresh=True), SHARDS_FOLDER)
    except NotFound:
        return {}
    return {str(entry["name"]).rsplit("/", 1)[-1]: int(entry["size"] or 0) for entry in found}
