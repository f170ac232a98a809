"""A dataset's folder on a disk."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from arwkv_api.roots.files import heartbeats_in, open_inside, read_inside
from arwkv_api.roots.folders import part_files, shard_files, shards_time_ns
from arwkv_api.roots.place import ShardFiles
from arwkv_store.dataset.notes_file import LocalNotes
from arwkv_store.format.layout import DATASET_FILE, SHARDS_FOLDER, manifest_name
from arwkv_store.places.source import LocalSource

PIECE_BYTES = 128 << 10


class LocalPlace:
    """Follows no symbolic link out of the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name, self.uri = folder, folder.name, str(folder)

    def identity_mark(self) -> int:
        """The time of dataset.json. Raises OSError where that is gone."""
        return (self.folder / DATASET_FILE).lstat().st_mtime_ns

    def shards_mark(self) -> int:
        """The time of the shards' folder; -2 where there is none."""
        return shards_time_ns(self.folder)

    def shard_files(self, meanwhile: Callable[[], None]) -> dict[int, ShardFiles]:
        """The parts that have a manifest, by number."""
        return shard_files(self.folder, meanwhile)

    def part_files(self, part: int) -> ShardFiles | None:
        """The same of one part alone; None where it has no manifest."""
        return part_files(self.folder, part)

    def heartbeats(self) -> list[bytes]:
        """The heartbeat files, in the order of their names."""
        return heartbeats_in(self.folder)

    def notes(self) -> LocalNotes:
        """People's notes beside dataset.json."""
        return LocalNotes(self.folder)

    def notes_seen(self) -> bytes:
        """The notes' bytes now."""
        return self.notes().read()

    def read(self, name: str, limit_bytes: int) -> bytes:
        """A file beside dataset.json."""
        return read_inside(self.folder, name, limit_bytes)

    def ahead(self, parts: Sequence[int]) -> None:
        """Does nothing: the files are near."""

    def manifest(self, part: int, limit_bytes: int) -> bytes:
        """A part's manifest."""
        return read_inside(self.folder / SHARDS_FOLDER, manifest_name(part), limit_bytes)

    def size_bytes(self, files: ShardFiles, name: str) -> int:
        """The size of a data file. A symbolic link has none."""
        path = self.folder / SHARDS_FOLDER / name
        return -1 if path.is_symlink() else path.lstat().st_size

    def open_data(self, name: str) -> "LocalContent":
        """A data file."""
        return LocalContent(open_inside(self.folder / SHARDS_FOLDER, name))

    def signed_address(self, name: str) -> None:
        """None: only this service has the file."""

    def source(self) -> LocalSource:
        """The dataset for readers."""
        return LocalSource(self.folder)

    def tokenizer_file(self, name: str, limit_bytes: int) -> Path | None:
        """A file below the folder; None where there is none."""
        path = self.folder / name
        return path if path.is_file() and path.stat().st_size <= limit_bytes else None


class LocalContent:
    """An open file, from the page cache if possible."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size_bytes, self.piece_bytes = os.fstat(fd).st_size, PIECE_BYTES

    def at_hand(self, start: int, size_bytes: int) -> bytearray | None:
        """The bytes if all are in the page cache; else None."""
        buffer = bytearray(size_bytes)
        try:
            got = os.preadv(self._fd, [buffer], start, os.RWF_NOWAIT)
        except OSError:
            return None
        return buffer if got == size_bytes else None

    def read(self, start: int, size_bytes: int) -> bytes:
        """Exactly these bytes. Raises OSError if the file is shorter than it was."""
        parts: list[bytes] = []
        while size_bytes:
            part = os.pread(self._fd, size_bytes, start)
            if not part:
                raise OSError(f"file ended {size_bytes} bytes early, at byte {start}; it was cut while it was sent")
            parts.append(part)
            start, size_bytes = start + len(part), size_bytes - len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
