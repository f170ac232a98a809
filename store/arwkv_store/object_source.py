"""A dataset in an object store or on the Hub, through fsspec: `s3://bucket/path`, `hf://datasets/user/name`, …"""

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from arwkv_store.cache import FileCache
from arwkv_store.errors import NotFound, UsageError
from arwkv_store.manifest import FileInfo, manifest_name
from arwkv_store.retry import Passing, with_retries

PIECE_BYTES = 8 << 20
MANIFESTS_AT_ONCE = 128
_MANIFEST_NAME = re.compile(r"part-(\d{6,})\.json")

Result = TypeVar("Result")


class ObjectSource:
    """Reads through fsspec; credentials and endpoints come from where each filesystem usually takes them."""

    def __init__(self, uri: str, cache: FileCache) -> None:
        self.uri = uri.rstrip("/")
        self._cache = cache
        # A filesystem object holds connections and threads: it belongs to the process that made it.
        self._filesystem: Any = None
        self._process_id = 0

    def dataset_json(self) -> bytes:
        """The bytes of dataset.json. Raises NotFound."""
        return self._read("dataset.json")

    def manifests(self) -> Iterator[tuple[int, bytes]]:
        """(part, bytes) of every committed part, in order, many requests at once."""
        parts = sorted(self._parts())
        for at in range(0, len(parts), MANIFESTS_AT_ONCE):
            some = parts[at : at + MANIFESTS_AT_ONCE]
            paths = {part: self._path(f"shards/{manifest_name(part)}") for part in some}
            found = self._read_many(list(paths.values()))
            for part in some:
                yield part, found[paths[part]]

    def manifest(self, part: int) -> bytes:
        """The bytes of one manifest."""
        return self._read(f"shards/{manifest_name(part)}")

    def data_path(self, part: int, kind: str, file: FileInfo) -> Path:
        """The file's verified copy in the cache, fetched if need be."""
        path = f"shards/{file.name}"

        def pieces(offset: int) -> Iterator[bytes]:
            for start in range(offset, file.size_bytes, PIECE_BYTES):
                end = min(start + PIECE_BYTES, file.size_bytes)
                yield self._once(partial(self._cat, path, start, end), path)

        return self._cache.fetch(file, pieces, f"{self.uri}/{path}")

    def _read(self, path: str) -> bytes:
        return self._try(lambda: self._cat(path, None, None), path)

    def _cat(self, path: str, start: int | None, end: int | None) -> bytes:
        content: bytes = self._fs().cat_file(self._path(path), start=start, end=end)
        return content

    def _read_many(self, paths: list[str]) -> dict[str, bytes]:
        """The content of each path; asked for all at once, and again one by one where that failed."""
        found = self._try(lambda: self._fs().cat(paths, on_error="return"), "shards")
        # fsspec answers a single path with its content alone.
        answers = found if isinstance(found, dict) else {paths[0]: found}
        return {
            path: answer if isinstance(answer, bytes) else self._read(f"shards/{path.rsplit('/', 1)[-1]}")
            for path, answer in answers.items()
        }

    def _parts(self) -> set[int]:
        try:
            names = self._try(lambda: self._fs().ls(self._path("shards"), detail=False, refresh=True), "shards")
        except NotFound:
            return set()
        matches = (_MANIFEST_NAME.fullmatch(name.rsplit("/", 1)[-1]) for name in names)
        return {int(match[1]) for match in matches if match}

    def _try(self, operation: Callable[[], Result], path: str) -> Result:
        return with_retries(lambda: self._once(operation, path), f"{self.uri}/{path}")

    def _once(self, operation: Callable[[], Result], path: str) -> Result:
        """The operation's result, its filesystem's errors told apart: what may pass, and what will not."""
        try:
            return operation()
        except FileNotFoundError as error:
            raise NotFound(f"{self.uri}/{path}: not there; name a dataset's URI") from error
        except PermissionError as error:
            raise UsageError(f"{self.uri}/{path}: {error}; check the credentials") from error
        except (OSError, TimeoutError) as error:
            raise Passing(f"{type(error).__name__}: {error}") from error

    def _path(self, path: str) -> str:
        root: str = self._fs()._strip_protocol(self.uri)
        return f"{root}/{path}"

    def _fs(self) -> Any:
        if self._process_id != os.getpid():
            scheme = self.uri.split("://", 1)[0]
            try:
                self._filesystem = fsspec.filesystem(scheme, skip_instance_cache=True)
            except (ValueError, ImportError) as error:
                raise UsageError(f'{self.uri}: {error}; for s3:// install "arwkv[s3]"') from error
            self._process_id = os.getpid()
        return self._filesystem

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_filesystem": None, "_process_id": 0}
