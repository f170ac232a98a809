"""Writes a dataset into an object store or onto the Hub.

A part's data objects are named by their content, so a second writer can only put the same content. Writers compete only
for the manifest, which is created only if there is none. S3 and Google Cloud Storage decide this themselves
(`If-None-Match: *`). For other stores fsspec checks first, and two writers at the same instant could both succeed.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import IO

from arwkv_store.errors import ArwkvError
from arwkv_store.format.layout import DATASET_FILE, SHARDS_FOLDER, manifest_name
from arwkv_store.format.manifest import ShardManifest
from arwkv_store.places.object_folder import ObjectFolder
from arwkv_store.places.object_source import object_parts
from arwkv_store.places.retry import Passing, with_retries

log = logging.getLogger(__name__)


class ObjectTarget:
    """Writes through fsspec; parts are made in the system's temporary folder (TMPDIR) first."""

    summarized = True

    def __init__(self, uri: str) -> None:
        self._folder = ObjectFolder(uri)
        self.uri = self._folder.uri

    def begin(self, dataset_json: bytes) -> bytes:
        """Write dataset.json unless there is one; returns the present one."""
        self.put_beside(DATASET_FILE, dataset_json)
        there = self._folder.read(DATASET_FILE)
        if self._ignores_conditions(there):
            log.warning(
                "%s: this store ignores If-None-Match: two writers that commit one part at the same time could both "
                "succeed, and one part would be lost; let one process write, or use another store",
                self.uri,
            )
        return there

    def put_beside(self, name: str, content: bytes) -> None:
        """Put an object next to dataset.json; an existing object stays."""
        with_retries(partial(self._create, name, content), f"{self.uri}/{name}")

    def replace_beside(self, name: str, content: bytes) -> None:
        """The same; an existing object is replaced."""
        self._folder.attempt(partial(self._folder.filesystem().pipe_file, self._folder.path(name), content), name)

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

    def placed(self, manifest: ShardManifest) -> ShardManifest:
        """The manifest with its files named by their content."""
        return manifest.named(addressed=True)

    def publish(self, manifest: ShardManifest, data: Mapping[str, IO[bytes]]) -> bool:
        """Commit a part from its complete temporary files by kind; False if another writer's commit was first."""
        name, raw = f"{SHARDS_FOLDER}/{manifest_name(manifest.part)}", manifest.to_bytes()
        objects = {f"{SHARDS_FOLDER}/{manifest.files[kind].name}": file.name for kind, file in data.items()}
        if self._folder.attempt(partial(self._folder.exists, name), name):
            return self._folder.read(name) == raw
        for key, local in objects.items():
            self._folder.attempt(partial(self._folder.filesystem().put_file, local, self._folder.path(key)), key)
        self.put_beside(name, raw)
        counts = self._folder.read(name)
        if counts != raw:
            self._discard(key for key in objects if key.rsplit("/", 1)[-1].encode() not in counts)
        return counts == raw

    def together(self) -> AbstractContextManager[None]:
        """Does nothing: each part is committed when it is published."""
        return contextlib.nullcontext()

    def _ignores_conditions(self, there: bytes) -> bool:
        """Whether the store takes the present dataset.json once more where it was told to create it."""
        put = partial(self._folder.filesystem().pipe_file, self._folder.path(DATASET_FILE), there, mode="create")
        try:
            self._folder.once(put, DATASET_FILE)
        except (FileExistsError, Passing, ArwkvError):
            return False
        return True

    def _create(self, name: str, content: bytes) -> None:
        """Create an object if there is none. Raises Passing if it is not certain that it exists afterwards."""
        there = partial(self._folder.once, partial(self._folder.exists, name), name)
        if there():
            return
        put = partial(self._folder.filesystem().pipe_file, self._folder.path(name), content, mode="create")
        try:
            self._folder.once(put, name)
        except FileExistsError:
            return
        except Passing:
            # An answer may be lost, and fsspec takes some stores' refusals for faults.
            if not there():
                raise

    def _discard(self, keys: Iterator[str]) -> None:
        """Remove data objects of a part that another writer committed without them."""
        for key in keys:
            with contextlib.suppress(ArwkvError):
                self._folder.attempt(partial(self._folder.filesystem().rm_file, self._folder.path(key)), key)
