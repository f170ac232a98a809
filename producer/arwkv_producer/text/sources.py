"""The sources of `--data`: files, local or in an object store, and Hub datasets; and the skipped files."""

import contextlib
import glob
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from arwkv_producer.text.folder import PassedOver, data_files
from arwkv_producer.text.kinds import KNOWN, kind_of
from arwkv_store.errors import NotFound, UsageError
from arwkv_store.places.object_folder import ObjectFolder

SIGNS = ("size", "ETag", "etag", "LastModified", "last_modified", "mtime", "blob_id", "sha256", "md5Hash")
"""What filesystems say of a file's content."""
WEIGHT = re.compile(r"\d+(\.\d*)?|\.\d+")
HUB_NAME = re.compile(r"([\w-][\w.-]*(?:/[\w.-]+)?)(?::([\w.-]+))?")
"""Of a dataset, and of one of its configurations."""


@dataclass(frozen=True)
class DataFile:
    """A file, by its path or its URI."""

    path: str

    @property
    def label(self) -> str:
        """Its name alone, as samples carry it."""
        return printable(PurePosixPath(self.path).name)

    @property
    def key(self) -> str:
        """A name that no other source has, wherever the command runs."""
        return self.path if "://" in self.path else printable(str(Path(self.path).absolute()))

    def signature(self) -> str:
        """Size and time of the last change, or what an object store says instead. Raises as `open`."""
        if "://" not in self.path:
            about = Path(self.path).stat()
            return f"{about.st_size} {about.st_mtime_ns}"
        place = ObjectFolder(self.path)
        facts: dict[str, Any] = place.attempt(lambda: place.filesystem().info(self.path), "")
        return json.dumps({name: str(facts[name]) for name in SIGNS if name in facts})

    def open(self) -> IO[bytes]:
        """Its bytes. Raises OSError, and what `ObjectFolder.attempt` raises."""
        if "://" not in self.path:
            return Path(self.path).open("rb")
        place = ObjectFolder(self.path)
        opened: IO[bytes] = place.attempt(lambda: place.filesystem().open(self.path, "rb"), "")
        return opened


@dataclass(frozen=True)
class HubDataset:
    """A dataset on the Hub, or in its local cache."""

    name: str
    split: str
    subset: str | None = None
    """Which of its configurations, where it has several."""

    @property
    def key(self) -> str:
        """A name that no other source has."""
        return f"{self.label}/{self.split}"

    def signature(self) -> str:
        """The dataset's commit on the Hub; empty if the Hub cannot be asked."""
        from huggingface_hub import HfApi

        with contextlib.suppress(OSError, ValueError):
            return str(HfApi().dataset_info(self.name).sha)
        return ""

    @property
    def label(self) -> str:
        return self.name if self.subset is None else f"{self.name}:{self.subset}"


Source = DataFile | HubDataset


@dataclass(frozen=True)
class Found:
    """What names stand for: files of one name in sorted order."""

    sources: list[Source] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)


@dataclass(frozen=True)
class Share:
    """The sources of one word of `--data`, and their share of the tokens."""

    name: str
    sources: Sequence[Source]
    weight: float
    passed_over: Sequence[PassedOver] = ()


def printable(name: str) -> str:
    """A file's name as text; bytes in it that are no UTF-8 are replaced."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def find_shares(names: Sequence[str], split: str) -> list[Share]:
    """Sources of `NAME:WEIGHT` words, one share each; without weights all of them are one share, in order.

    Raises UsageError where some have weights and others have none, and what `find_sources` raises.
    """
    parsed = [_weight(name) for name in names]
    bare = [name for name, weight in parsed if weight is None]
    if bare and len(bare) < len(names):
        raise UsageError(
            f"--data {bare[0]}: no weight, but other sources have one; write {bare[0]}:WEIGHT, or leave out all weights"
        )
    groups = (
        [(" ".join(names), list(names), 1.0)] if bare else [(name, [name], weight or 1.0) for name, weight in parsed]
    )
    shares = []
    for label, group, weight in groups:
        found = find_sources(group, split)
        shares.append(Share(label, found.sources, weight, found.passed_over))
    return shares


def _weight(word: str) -> tuple[str, float | None]:
    """`a.jsonl:0.7` as name and weight, unless a file of that very name exists."""
    name, _, weight = word.rpartition(":")
    if not name or not WEIGHT.fullmatch(weight) or Path(word).expanduser().exists():
        return word, None
    if float(weight) <= 0:
        raise UsageError(f"--data {word}: a weight must be above 0; leave the source out instead")
    return name, float(weight)


def find_sources(names: Sequence[str], split: str) -> Found:
    """What files, folders, globs, their URIs and Hub names stand for.

    Of a folder or glob only data files are read; other files are skipped, with a reason. Raises NotFound for a name
    that stands for nothing, UsageError for a file of an unknown kind.
    """
    found = Found()
    for name in names:
        root, files, is_file = _remote(name) if "://" in name else _local(name)
        hub = None if files else HUB_NAME.fullmatch(name)
        if hub and kind_of(name) not in KNOWN:
            found.sources.append(HubDataset(hub[1], split, hub[2]))
            continue
        if is_file and kind_of(name) not in KNOWN:
            raise UsageError(f"--data {name}: unknown kind of file; supported kinds: {', '.join(KNOWN)}")
        chosen, passed_over = (files, []) if is_file else data_files(root, files, split, name)
        if not chosen:
            raise NotFound(f"--data {name}: no such file, and no {', '.join(KNOWN)} in such a folder or glob")
        found.sources.extend(map(DataFile, chosen))
        found.passed_over.extend(passed_over)
    return found


Listing = tuple[str, list[str], bool]
"""A folder, the files in it that are meant, and whether the name was one file's own."""


def _local(name: str) -> Listing:
    path = Path(name).expanduser()
    if path.is_file():
        return str(path.parent), [str(path)], True
    if path.is_dir():
        return str(path), sorted(str(file) for file in path.rglob("*") if file.is_file()), False
    files = sorted(file for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
    return _before_wildcards(str(path)), files, False


def _remote(uri: str) -> Listing:
    place = ObjectFolder(uri)
    path = place.filesystem()._strip_protocol(uri)
    files = sorted(place.attempt(lambda: list(_listed(place.filesystem(), path)), ""))
    scheme = uri.partition("://")[0] + "://"
    return scheme + _before_wildcards(path), [scheme + file for file in files], files == [path]


def _listed(filesystem: Any, path: str) -> Iterator[str]:
    if glob.has_magic(path):
        yield from (file for file, about in filesystem.glob(path, detail=True).items() if about["type"] == "file")
    else:
        yield from filesystem.find(path)


def _before_wildcards(path: str) -> str:
    """The folder that a glob looks in; a path without wildcards is its own."""
    while glob.has_magic(path):
        path = path.rpartition("/")[0]
    return path
