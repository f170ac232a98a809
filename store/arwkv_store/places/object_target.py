"""Writing a dataset into an object store or onto the Hub.

Objects appear whole, and are created only where there are none: S3 and Google Cloud Storage decide that themselves
(`If-None-Match: *`); of the stores that cannot, fsspec looks first, and two writers at one instant could both win.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import IO, Any

from arwkv_store.errors import TryAgain
from arwkv_store.format.file_hash import sha256_of
from arwkv_store.format.layout import DATASET_FILE, SHARDS_FOLDER, manifest_name
from arwkv_store.format.manifest import FileInfo, ShardManifest
from arwkv_store.places.object_folder import ObjectFolder
from arwkv_store.places.object_source import PIECE_BYTES, object_parts

ABANDONED_S = 3600.0
"""Age at which data without a manifest counts as left behind by a writer that died."""


class ObjectTarget:
    """Writes through fsspec; parts are made in the system's temporary folder (TMPDIR) first."""

    def __init__(self, uri: str) -> None:
        self._folder = ObjectFolder(uri)
        self.uri = self._folder.uri

    def begin(self, dataset_json: bytes) -> bytes:
        """Write dataset.json unless there is one; returns the one that counts."""
        self.put_beside(DATASET_FILE, dataset_json)
        return self._folder.read(DATASET_FILE)

    def put_beside(self, name: str, content: bytes) -> None:
        """Put an object beside dataset.json; one that is there stays."""
        self._create(name, lambda path: self._folder.filesystem().pipe_file(path, content, mode="create"))

    def committed_parts(self) -> set[int]:
        """Parts that have a manifest."""
        return object_parts(self._folder)

    def manifest(self, part: int) -> bytes:
        """The bytes of a committed part's manifest."""
        return self._folder.read(f"{SHARDS_FOLDER}/{manifest_name(part)}")

    @contextmanager
    def temporary_file(self) -> Iterator[IO[bytes]]:
        """A named file on a local disk, unbuffered, gone when the block ends."""
        with tempfile.NamedTemporaryFile(prefix="arwkv-", buffering=0) as file:
            yield file

    def publish(self, manifest: ShardManifest, data: Mapping[str, IO[bytes]]) -> bool:
        """Commit a part from its complete temporary files by kind; False where another's commit was first.

        Raises TryAgain where data of another writer lies there without a manifest, too young to be of a dead one.
        """
        name, raw = f"{SHARDS_FOLDER}/{manifest_name(manifest.part)}", manifest.to_bytes()
        for kind, file in data.items():
            if self._exists(name) or not self._place(manifest.files[kind], file.name, name):
                return False
        # An answer that was lost makes the second try find the first one's object: it is ours.
        self.put_beside(name, raw)
        return self._folder.read(name) == raw

    def _place(self, file: FileInfo, local: str, manifest: str) -> bool:
        """Upload a data file; False where the part turns out to be committed."""
        name = f"{SHARDS_FOLDER}/{file.name}"
        filesystem = self._folder.filesystem()
        if self._create(name, lambda path: filesystem.put_file(local, path, mode="create")):
            return True
        if self._sha256(name, file) == file.sha256:
            return True
        if self._exists(manifest):
            return False
        path = self._folder.path(name)
        changed: datetime = self._folder.attempt(lambda: filesystem.modified(path), name)
        age_s = (datetime.now(UTC) - changed.astimezone(UTC)).total_seconds()
        if age_s < ABANDONED_S:
            raise TryAgain(
                f"{self.uri}/{name}: another writer put it there {age_s:.0f} s ago and has not committed the part; if "
                f"that writer is dead, the same command replaces it after {ABANDONED_S - age_s:.0f} s"
            )
        self._folder.attempt(lambda: filesystem.put_file(local, path), name)
        return True

    def _create(self, name: str, put: Callable[[str], Any]) -> bool:
        """Make an object that is not there; False where it is."""
        path = self._folder.path(name)
        try:
            self._folder.attempt(lambda: put(path), name)
        except FileExistsError:
            return False
        return True

    def _exists(self, name: str) -> bool:
        path = self._folder.path(name)
        return bool(self._folder.attempt(lambda: self._folder.filesystem().exists(path), name))

    def _sha256(self, name: str, file: FileInfo) -> str:
        path = self._folder.path(name)
        size = int(self._folder.attempt(lambda: self._folder.filesystem().size(path), name))
        if size != file.size_bytes:
            return ""
        starts = range(0, size, PIECE_BYTES)
        reads = (partial(self._folder.piece, name, start, min(start + PIECE_BYTES, size)) for start in starts)
        return sha256_of(self._folder.attempt(read, name) for read in reads)
