"""The sources of a dataset's files."""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from arwkv_store.errors import CorruptShard, NotFound
from arwkv_store.format.layout import BESIDE_FILES, DATASET_FILE, SHARDS_FOLDER, committed_parts, manifest_name, part_of
from arwkv_store.format.manifest import FileInfo
from arwkv_store.format.seal import MAX_DOCUMENT_BYTES
from arwkv_store.format.summary import MAX_SUMMARY_BYTES, SUMMARY_FILE, Present, mark
from arwkv_store.places.cache import AHEAD_SHARE, FileCache, RangedFile


class Source(Protocol):
    """A dataset's documents and data files, in any place. Survives pickling and forking.

    A document above the size limit is truncated one byte above the limit, so that `unsealed` refuses it.
    """

    uri: str

    def dataset_json(self) -> bytes:
        """The bytes of dataset.json. Raises NotFound."""

    def beside(self) -> dict[str, bytes]:
        """The files next to dataset.json that a copy takes along, if the source has them."""

    def summary(self) -> bytes:
        """The bytes of the summary of manifests; none if there is no summary."""

    def present(self, known: int) -> Present | None:
        """The committed parts; None where a list of them costs as much as their manifests. Parts below `known` may be
        left out where listing them takes many requests."""

    def manifests(self, parts: Sequence[int] | None = None) -> Iterator[tuple[int, bytes]]:
        """(part, bytes of its manifest) of every committed part, or of these, in order of parts."""

    def manifest(self, part: int) -> bytes:
        """The bytes of one manifest."""

    def data_path(self, part: int, kind: str, file: FileInfo) -> Path:
        """A local path of the whole "rows" or "hidden" file, fetched if need be."""

    def data_ranges(self, part: int, kind: str, file: FileInfo) -> RangedFile | None:
        """A local copy into which byte ranges are fetched on request; None if `data_path` gives the whole
        file at no cost."""

    def forget(self, file: FileInfo) -> bool:
        """Remove a copy that is damaged or gone; False if the file itself is read."""

    def ahead(self, stop: threading.Event, share: int = AHEAD_SHARE) -> "Source | None":
        """This source for a thread that fetches ahead of a reader until `stop` is set; None if data files are local.

        A file is fetched so only if the cache can hold `share` of its size.
        """


class LocalSource:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.uri = str(folder)
        self._folder = folder
        self._shards = folder / SHARDS_FOLDER

    def dataset_json(self) -> bytes:
        """The bytes of dataset.json. Raises NotFound."""
        try:
            return _read_document(f"{self._folder}/{DATASET_FILE}")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(f"{self._folder}: no {DATASET_FILE} there; name a dataset's folder or URI") from error

    def beside(self) -> dict[str, bytes]:
        """The tokenizer's files that are there, the corpus report, and people's notes."""
        paths = (self._folder / name for name in BESIDE_FILES)
        return {path.name: path.read_bytes() for path in paths if path.is_file()}

    def summary(self) -> bytes:
        """The bytes of the summary of manifests; none if there is no summary."""
        try:
            with open(f"{self._folder}/{SUMMARY_FILE}", "rb", buffering=0) as file:
                return file.readall() if os.fstat(file.fileno()).st_size <= MAX_SUMMARY_BYTES else b""
        except OSError:
            return b""

    def present(self, known: int) -> Present:
        """All committed parts: their manifests' sizes and times."""
        found = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._shards) as entries:
            for entry in entries:
                if not entry.name.endswith(".json") or (named := part_of(entry.name)) is None:
                    continue
                try:  # not `suppress`, which costs something for every part
                    status = entry.stat()
                except FileNotFoundError:  # removed after the listing
                    continue
                found.append((named[0], mark(status.st_size, status.st_mtime_ns)))
        return Present(sorted(found))

    def manifests(self, parts: Sequence[int] | None = None) -> Iterator[tuple[int, bytes]]:
        """(part, bytes) of every committed part, or of these, in order."""
        if parts is None:
            parts = sorted(committed_parts(os.listdir(self._shards)) if self._shards.is_dir() else ())
        for part in parts:
            yield part, self.manifest(part)

    def manifest(self, part: int) -> bytes:
        """The bytes of one manifest."""
        path = f"{self._shards}/{manifest_name(part)}"
        try:
            return _read_document(path)
        except FileNotFoundError as error:
            raise CorruptShard(f"{path}: removed since the dataset was opened; open it again") from error

    def data_path(self, part: int, kind: str, file: FileInfo) -> Path:
        """The file in the folder."""
        return self._shards / file.name

    def data_ranges(self, part: int, kind: str, file: FileInfo) -> None:
        """None: the file is there."""

    def forget(self, file: FileInfo) -> bool:
        """Does nothing: the file belongs to the dataset."""
        return False

    def ahead(self, stop: threading.Event, share: int = AHEAD_SHARE) -> None:
        """None: the files are local."""


def _read_document(path: str) -> bytes:
    # Plain strings and no buffer: opening a dataset of many parts is mostly this.
    with open(path, "rb", buffering=0) as file:
        whole = os.fstat(file.fileno()).st_size <= MAX_DOCUMENT_BYTES
        return file.readall() if whole else file.read(MAX_DOCUMENT_BYTES + 1)


def source_of(uri: str | Path, cache: FileCache) -> Source:
    """The source a URI names; `cache` keeps the files of remote ones. Raises UsageError for an unknown scheme."""
    text = str(uri)
    if "://" not in text:
        return LocalSource(Path(text))
    if text.startswith(("http://", "https://")):
        from arwkv_store.places.http_source import HttpSource

        return HttpSource(text, cache)
    from arwkv_store.places.object_source import ObjectSource

    return ObjectSource(text, cache)
