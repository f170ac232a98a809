"""A dataset's folder in an object store, and a root of them: one listing shows every dataset and every shard."""

import errno
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Self

from arwkv_api.roots.folders import is_servable_name
from arwkv_api.roots.place import Place, ShardFiles
from arwkv_store.dataset.notes_file import ObjectNotes
from arwkv_store.errors import NotFound, TryAgain, UsageError
from arwkv_store.format.heartbeat import MAX_HEARTBEAT_BYTES, is_heartbeat
from arwkv_store.format.layout import DATASET_FILE, NOTES_FILE, SHARDS_FOLDER, manifest_name, part_of, part_stem
from arwkv_store.format.notes import MAX_NOTES_BYTES
from arwkv_store.places.cache import FileCache
from arwkv_store.places.commit import write_once
from arwkv_store.places.object_folder import ObjectFolder
from arwkv_store.places.object_listing import Listed, listed
from arwkv_store.places.object_source import ObjectSource

PIECE_BYTES = 4 << 20
SIGNED_FOR_S = 900
AHEAD = 64
# Objects between two calls of `meanwhile`.
BREATH_OBJECTS = 1000


class _Seen:
    """What a listing shows of one dataset: its objects are added in the order of their names."""

    def __init__(self) -> None:
        self.identity: Listed | None = None
        self.parts: dict[int, ShardFiles] = {}
        self.heartbeats: dict[str, str] = {}
        self.notes = ""
        self._digest = hashlib.blake2b(digest_size=8)
        self._part, self._files = -1, list[Listed]()

    def add(self, name: str, found: Listed) -> None:
        """Take in an object by its name below the dataset's folder."""
        if is_heartbeat(name):
            self.heartbeats[name] = found.mark
        if name == NOTES_FILE:
            self.notes = found.mark
        if name == DATASET_FILE:
            self.identity = replace(found, name=name)
        folder, _, file = name.partition("/")
        named = part_of(file) if folder == SHARDS_FOLDER else None
        if named is None:
            return
        self._digest.update(f"{file} {found.size_bytes} {found.mark}\n".encode())
        if named[0] != self._part:
            self._close_part()
            self._part = named[0]
        self._files.append(replace(found, name=file))

    def closed(self) -> Self:
        """The same, after the last object."""
        self._close_part()
        return self

    @property
    def mark(self) -> int:
        """A positive number that changes with every shard."""
        return int.from_bytes(self._digest.digest()) >> 1 | 1

    def _close_part(self) -> None:
        manifest = next((found for found in self._files if found.name.endswith(".json")), None)
        if manifest is not None:
            seen = "".join(f"{found.name} {found.size_bytes} {found.mark}\n" for found in self._files)
            sizes = tuple((found.name, found.size_bytes) for found in self._files if found is not manifest)
            self.parts[self._part] = ShardFiles(self._part, manifest.modified_s, _digest(seen), sizes)
        self._files = []


class ObjectPlace:
    """Reads through fsspec. `seen` is what a listing of its root showed; without it, the folder is listed."""

    def __init__(self, folder: ObjectFolder, seen: _Seen | None = None) -> None:
        self._folder, self._seen = folder, seen
        self.uri, self.name = folder.uri, folder.uri.rsplit("/", 1)[-1]
        self._ahead: dict[int, bytes] = {}

    def identity_mark(self) -> int:
        """The second of dataset.json's time, and digits of its content's mark. Raises OSError where it is gone."""
        found = self._seen.identity if self._seen else next(self._list(DATASET_FILE), None)
        if found is None or found.name != DATASET_FILE:
            raise FileNotFoundError(errno.ENOENT, "not there", DATASET_FILE)
        return int(found.modified_s) * 10**9 + int(_digest(f"{found.size_bytes} {found.mark}")[:8], 16) % 10**9

    def shards_mark(self) -> int:
        """A digest of the listing."""
        return 0 if self._seen is None else self._seen.mark

    def shard_files(self, meanwhile: Callable[[], None]) -> dict[int, ShardFiles]:
        """The parts that have a manifest, by number."""
        return (_grouped(self._list(f"{SHARDS_FOLDER}/")) if self._seen is None else self._seen).parts

    def part_files(self, part: int) -> ShardFiles | None:
        """The same of one part alone; None where it has no manifest."""
        return _grouped(self._list(f"{SHARDS_FOLDER}/{part_stem(part)}.")).parts.get(part)

    def heartbeats(self) -> list[bytes]:
        """The heartbeat objects, in the order of their names; one that did not change is not requested again."""
        marks = {} if self._seen is None else self._seen.heartbeats
        return [raw for name in marks if (raw := _small(self._folder, name, marks[name], MAX_HEARTBEAT_BYTES))]

    def notes(self) -> ObjectNotes:
        """People's notes beside dataset.json."""
        return ObjectNotes(self._folder)

    def notes_seen(self) -> bytes:
        """The notes' bytes at the mark of the listing; that mark is not requested again."""
        if self._seen is None:
            return self.notes().read()
        return _small(self._folder, NOTES_FILE, self._seen.notes, MAX_NOTES_BYTES) if self._seen.notes else b""

    def read(self, name: str, limit_bytes: int) -> bytes:
        """An object beside dataset.json."""
        with _faults(name):
            content = self._folder.read(name, limit_bytes)
        if len(content) > limit_bytes:
            raise OSError(f"{name}: more than the {limit_bytes} bytes that such a file may have")
        return content

    def ahead(self, parts: Sequence[int]) -> None:
        """Request these parts' manifests, many at once; those that fail are requested again one by one."""
        self._ahead = {}
        for at in range(0, len(parts), AHEAD):
            some = parts[at : at + AHEAD]
            names = [f"{SHARDS_FOLDER}/{manifest_name(part)}" for part in some]
            limits = [1 << 30] * len(names)
            with _faults(SHARDS_FOLDER):
                ask = partial(self._folder.cat_ranges, names, [0] * len(names), limits)
                answers = self._folder.attempt(ask, SHARDS_FOLDER)
            found = zip(some, answers, strict=True)
            self._ahead.update((part, answer) for part, answer in found if isinstance(answer, bytes))

    def manifest(self, part: int, limit_bytes: int) -> bytes:
        """A part's manifest."""
        raw = self._ahead.pop(part, None)
        return self.read(f"{SHARDS_FOLDER}/{manifest_name(part)}", limit_bytes) if raw is None else raw

    def size_bytes(self, files: ShardFiles, name: str) -> int:
        """The size of a data object. Raises OSError where it is gone."""
        for found, size_bytes in files.sizes:
            if found == name:
                return size_bytes
        raise FileNotFoundError(errno.ENOENT, "not there", name)

    def open_data(self, name: str) -> "ObjectContent":
        """A data object; each piece is one request."""
        inner = f"{SHARDS_FOLDER}/{name}"
        with _faults(name):
            size_bytes = self._folder.attempt(partial(self._folder.size_bytes, inner), inner)
        return ObjectContent(self._folder, inner, size_bytes)

    def signed_address(self, name: str) -> str | None:
        """An address at the store that is valid for SIGNED_FOR_S; None where it signs none."""
        path = self._folder.path(f"{SHARDS_FOLDER}/{name}")
        try:
            address: str = self._folder.filesystem().sign(path, expiration=SIGNED_FOR_S)
        except Exception:  # noqa: BLE001  # each filesystem says in its own way that it cannot sign
            return None
        return address if address.startswith(("http://", "https://")) else None

    def source(self) -> ObjectSource:
        """The dataset for readers, over the same connections."""
        return ObjectSource(self.uri, FileCache.of(None, None), self._folder)

    def tokenizer_file(self, name: str, limit_bytes: int) -> Path | None:
        """A local copy of an object; None where there is none, or it cannot be read now."""
        try:
            return _copied(self._folder, name, limit_bytes)
        except (OSError, TryAgain):
            return None

    def _list(self, prefix: str) -> Iterator[Listed]:
        with _faults(prefix):
            yield from listed(self._folder, prefix)


class ObjectContent:
    """A data object. Holds no connection between two pieces."""

    def __init__(self, folder: ObjectFolder, name: str, size_bytes: int) -> None:
        self._folder, self._name = folder, name
        self.size_bytes, self.piece_bytes = size_bytes, PIECE_BYTES

    def at_hand(self, start: int, size_bytes: int) -> None:
        """None: each piece is a request."""

    def read(self, start: int, size_bytes: int) -> bytes:
        """Exactly these bytes. Raises OSError, TryAgain."""
        with _faults(self._name.rsplit("/", 1)[-1]):
            ask = partial(self._folder.piece, self._name, start, start + size_bytes)
            piece = self._folder.attempt(ask, self._name)
        if len(piece) != size_bytes:
            raise OSError(f"{len(piece)} of {size_bytes} bytes came, at byte {start}; the object was replaced")
        return piece

    def close(self) -> None:
        """Does nothing."""


def object_place(uri: str) -> Place:
    """The dataset at this URI."""
    root, _, name = uri.rpartition("/")
    return ObjectPlace(_root(uri) if root.endswith(":/") else _root(root).within(name))


def places_under(root: str, meanwhile: Callable[[], None]) -> Iterator[tuple[str, Place]]:
    """Name and place of each dataset under `root`, or of the root itself. Raises TryAgain."""
    folder = _root(root)
    whole, seen = _Seen(), dict[str, _Seen]()
    with _faults(root):
        for number, found in enumerate(listed(folder)):
            if number % BREATH_OBJECTS == BREATH_OBJECTS - 1:
                meanwhile()
            whole.add(found.name, found)
            name, _, inner = found.name.partition("/")
            if inner and is_servable_name(name):
                seen.setdefault(name, _Seen()).add(inner, found)
    if whole.identity is not None:
        yield folder.uri.rsplit("/", 1)[-1], ObjectPlace(folder, whole.closed())
        return
    for name, one in sorted(seen.items()):
        if one.identity is not None:
            yield name, ObjectPlace(folder.within(name), one.closed())


@lru_cache(maxsize=64)
def _root(uri: str) -> ObjectFolder:
    return ObjectFolder(uri)


def _small(folder: ObjectFolder, name: str, mark: str, limit_bytes: int) -> bytes:
    """The object as it is at this mark; nothing if it cannot be read now."""
    key = (folder.uri, name)
    if _SMALL.get(key, ("", b""))[0] != mark:
        try:
            with _faults(name):
                _SMALL[key] = mark, folder.read(name, limit_bytes)
        except (OSError, TryAgain):
            return b""
    return _SMALL[key][1]


_SMALL: dict[tuple[str, str], tuple[str, bytes]] = {}


@lru_cache(maxsize=64)
def _copied(folder: ObjectFolder, name: str, limit_bytes: int) -> Path:
    with _faults(name):
        content = folder.read(name, limit_bytes)
    if len(content) > limit_bytes:
        raise OSError(f"{name}: more than {limit_bytes} bytes")
    kept = FileCache.of(None, None).folder / "tokenizers"
    kept.mkdir(parents=True, exist_ok=True)
    path = kept / f"{hashlib.sha256(content).hexdigest()}.json"
    write_once(path, content)
    return path


def _grouped(objects: Iterator[Listed]) -> _Seen:
    seen = _Seen()
    for found in objects:
        seen.add(found.name, found)
    return seen.closed()


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@contextmanager
def _faults(name: str) -> Iterator[None]:
    """A store's errors as those of a disk: what is not there, and what may pass."""
    try:
        yield
    except NotFound as error:
        raise FileNotFoundError(errno.ENOENT, "not there", name) from error
    except UsageError as error:
        raise TryAgain(f"{name}: {error}; try again, and check the service's credentials if this repeats") from error
