"""A dataset's folder as the index reads it, on a disk or in an object store."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from arwkv_store.dataset.notes_file import NotesFile
from arwkv_store.places.source import Source


@dataclass(frozen=True)
class ShardFiles:
    """One committed part: its manifest's time, and a fingerprint that changes when any of its files does."""

    part: int
    committed_at_s: float
    fingerprint: str
    sizes: tuple[tuple[str, int], ...] = ()
    """Names and sizes of its data files, where the listing has them."""


class Content(Protocol):
    """An open data file. Reading raises OSError if it is shorter than it was, TryAgain if it cannot be read now."""

    size_bytes: int
    piece_bytes: int

    def at_hand(self, start: int, size_bytes: int) -> bytes | bytearray | None:
        """The bytes if that takes no waiting; else None."""

    def read(self, start: int, size_bytes: int) -> bytes:
        """Exactly these bytes."""

    def close(self) -> None:
        """Release it."""


class Place(Protocol):
    """One dataset's folder. Files that are not there, or are no files, raise OSError as a disk does; faults that may
    pass raise OSError or TryAgain."""

    name: str
    uri: str
    """As the index stores it."""

    def identity_mark(self) -> int:
        """A time in nanoseconds that changes with dataset.json. Raises OSError where that is gone."""

    def shards_mark(self) -> int:
        """A number that stays as long as no shard came or went; 0 or less if that cannot be told."""

    def shard_files(self, meanwhile: Callable[[], None]) -> dict[int, ShardFiles]:
        """The parts that have a manifest, by number. `meanwhile` is called now and then."""

    def part_files(self, part: int) -> ShardFiles | None:
        """The same of one part alone; None where it has no manifest."""

    def heartbeats(self) -> list[bytes]:
        """The heartbeat files of the processes that make the dataset, in the order of their names."""

    def notes(self) -> NotesFile:
        """People's notes beside dataset.json, to read or to change now."""

    def notes_seen(self) -> bytes:
        """The notes' bytes as the listing showed them, if there was one; else those of now."""

    def read(self, name: str, limit_bytes: int) -> bytes:
        """A file beside dataset.json."""

    def ahead(self, parts: Sequence[int]) -> None:
        """Request the manifests that are read next, where one request costs more than many at once."""

    def manifest(self, part: int, limit_bytes: int) -> bytes:
        """A part's manifest."""

    def size_bytes(self, files: ShardFiles, name: str) -> int:
        """The size of a data file."""

    def open_data(self, name: str) -> Content:
        """A data file."""

    def signed_address(self, name: str) -> str | None:
        """An address from which everybody can fetch a data file for some minutes; None where there is none."""

    def source(self) -> Source:
        """The dataset for readers."""

    def tokenizer_file(self, name: str, limit_bytes: int) -> Path | None:
        """A file below the dataset's folder as a local one; None where there is none."""


def is_remote(root: str) -> bool:
    """Whether a root or a folder lies in an object store."""
    return "://" in root
