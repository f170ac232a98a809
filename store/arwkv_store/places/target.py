"""The targets of a dataset's files. In every place, nothing is visible before its part is complete, and the first
commit of a part wins."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Protocol

from arwkv_store.errors import UsageError
from arwkv_store.format.layout import DATASET_FILE, SHARDS_FOLDER, committed_parts, manifest_name
from arwkv_store.format.manifest import ShardManifest
from arwkv_store.places.commit import (
    make_folder,
    publish,
    remove_abandoned,
    storage_faults,
    temporary_file,
    write_anew,
    write_once,
)


class Target(Protocol):
    """A dataset's place, for writing. Safe to use from many processes at once."""

    uri: str
    summarized: bool
    """Whether a summary of manifests is written at milestones."""

    def begin(self, dataset_json: bytes) -> bytes:
        """Write dataset.json unless there is one; returns the present one."""

    def put_beside(self, name: str, content: bytes) -> None:
        """Put a file next to dataset.json, completely or not at all; an existing file stays."""

    def replace_beside(self, name: str, content: bytes) -> None:
        """The same; an existing file is replaced."""

    def committed_parts(self) -> set[int]:
        """Parts that have a manifest."""

    def manifest(self, part: int) -> bytes:
        """The bytes of a committed part's manifest."""

    def temporary_file(self) -> AbstractContextManager[IO[bytes]]:
        """A named file on a local disk, unbuffered, gone when the block ends."""

    def placed(self, manifest: ShardManifest) -> ShardManifest:
        """The manifest with its files named as they are in this place."""

    def publish(self, manifest: ShardManifest, data: Mapping[str, IO[bytes]]) -> bool:
        """Commit a part from its complete temporary files by kind; False if another writer's commit was first."""

    def together(self) -> AbstractContextManager[None]:
        """Parts published inside are one commit at the end, in places that limit the number of commits."""


class LocalTarget:
    """A folder."""

    summarized = True

    def __init__(self, folder: Path) -> None:
        self.uri = str(folder)
        self._folder = folder
        self._shards = folder / SHARDS_FOLDER

    def begin(self, dataset_json: bytes) -> bytes:
        """Write dataset.json unless there is one; returns the present one. Removes files of dead writers."""
        path = self._folder / DATASET_FILE
        with storage_faults(self.uri):
            make_folder(self._shards)
            remove_abandoned(self._folder)
            remove_abandoned(self._shards)
            if not path.exists():
                write_once(path, dataset_json)
            return path.read_bytes()

    def put_beside(self, name: str, content: bytes) -> None:
        """Put a file next to dataset.json, completely or not at all; an existing file stays."""
        with storage_faults(self.uri):
            if not (self._folder / name).exists():
                write_once(self._folder / name, content)

    def replace_beside(self, name: str, content: bytes) -> None:
        """The same; an existing file is replaced."""
        with storage_faults(self.uri):
            write_anew(self._folder / name, content)

    def committed_parts(self) -> set[int]:
        """Parts that have a manifest."""
        with storage_faults(self.uri):
            return committed_parts(os.listdir(self._shards))

    def manifest(self, part: int) -> bytes:
        """The bytes of a committed part's manifest."""
        return (self._shards / manifest_name(part)).read_bytes()

    def temporary_file(self) -> AbstractContextManager[IO[bytes]]:
        """A file in the shards' folder under a temporary name."""
        return temporary_file(self._shards)

    def placed(self, manifest: ShardManifest) -> ShardManifest:
        """The manifest with its files named by the part alone."""
        return manifest.named(addressed=False)

    def publish(self, manifest: ShardManifest, data: Mapping[str, IO[bytes]]) -> bool:
        """Commit a part from its complete temporary files by kind; False if another writer's commit was first."""
        return publish(
            self._folder / DATASET_FILE,
            {self._shards / manifest.files[kind].name: file for kind, file in data.items()},
            self._shards / manifest_name(manifest.part),
            manifest.to_bytes(),
        )

    def together(self) -> AbstractContextManager[None]:
        """Does nothing: each part is committed when it is published."""
        return nullcontext()


def target_of(uri: str | Path) -> Target:
    """The place a URI names. Raises UsageError for one that cannot be written."""
    text = str(uri)
    if "://" not in text:
        return LocalTarget(Path(text))
    if text.startswith(("http://", "https://")):
        raise UsageError(f"{text}: a service's datasets can only be read; name a folder, or s3:// or another store")
    if text.startswith("hf://") and not text.startswith("hf://buckets/"):
        from arwkv_store.places.hub_target import HubTarget

        return HubTarget(text)
    from arwkv_store.places.object_target import ObjectTarget

    return ObjectTarget(text)
