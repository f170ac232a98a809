"""Text documents from files and Hub datasets, each knowing where it came from and what of it is to be learned."""

import glob
import gzip
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from arwkv_store.errors import NotFound, UsageError

TEXT_SUFFIXES = (".txt", ".text", ".md")
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
TABLE_FORMATS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".arrow": "arrow"}
"""Read by Hugging Face `datasets`, under its name for the format."""
KNOWN_SUFFIXES = (*TEXT_SUFFIXES, *JSON_LINES_SUFFIXES, *TABLE_FORMATS)
WEIGHT = re.compile(r"\d+(\.\d*)?|\.\d+")
HUB_NAME = re.compile(r"([\w-][\w.-]*(?:/[\w.-]+)?)(?::([\w.-]+))?")
"""Of a dataset, and of one of its configurations."""


@dataclass(frozen=True)
class Record:
    """One line, row or file: its fields, and where it stands (`file.jsonl:12`)."""

    fields: Mapping[str, Any]
    source: str
    where: str
    """The same for an error: with the whole path."""

    def text(self, field: str) -> str:
        """The string in a field. Raises UsageError naming the record where there is none."""
        value = self.value(field)
        if not isinstance(value, str):
            raise UsageError(
                f"{self.where}: field {field!r} is {type(value).__name__}, not a string; name another with --field"
            )
        return value

    def value(self, field: str) -> Any:
        """What is in a field. Raises UsageError naming the record where it has no such field."""
        if field not in self.fields:
            raise UsageError(
                f"{self.where}: no field {field!r} (it has: {', '.join(self.fields)}); name another with --field"
            )
        return self.fields[field]


@dataclass(frozen=True)
class HubDataset:
    """A dataset on the Hub, or in its local cache."""

    name: str
    split: str
    subset: str | None = None
    """Which of its configurations, where it has several."""

    @property
    def label(self) -> str:
        return self.name if self.subset is None else f"{self.name}:{self.subset}"


Source = Path | HubDataset


@dataclass(frozen=True)
class Share:
    """What one word of `--data` stands for, and which part of the tokens it is to give."""

    name: str
    sources: Sequence[Source]
    weight: float


def find_shares(names: Sequence[str], split: str) -> list[Share]:
    """Sources of `NAME:WEIGHT` words, one share each; without weights all of them are one share, in order.

    Raises UsageError where some have weights and others have none, and what `find_sources` raises.
    """
    parsed = [_weight(name) for name in names]
    bare = [name for name, weight in parsed if weight is None]
    if len(bare) == len(names):
        return [Share(" ".join(names), find_sources(names, split), 1.0)]
    if bare:
        raise UsageError(f"--data {bare[0]}: no weight, but others have one; write {bare[0]}:WEIGHT, or none at all")
    return [Share(name, find_sources([name], split), weight or 1.0) for name, weight in parsed]


def _weight(word: str) -> tuple[str, float | None]:
    """`a.jsonl:0.7` as name and weight, unless a file of that very name exists."""
    name, _, weight = word.rpartition(":")
    if not name or not WEIGHT.fullmatch(weight) or Path(word).expanduser().exists():
        return word, None
    if float(weight) <= 0:
        raise UsageError(f"--data {word}: a weight must be above 0; leave the source out instead")
    return name, float(weight)


def find_sources(names: Sequence[str], split: str) -> list[Source]:
    """What files, folders, globs and Hub names stand for, files of one name in sorted order.

    Raises NotFound for a name that stands for nothing, UsageError for a file of an unknown kind.
    """
    found: list[Source] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if _kind(file) in KNOWN_SUFFIXES and file.is_file())
        elif path.is_file():
            files = [path]
        else:
            files = sorted(Path(file) for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
        if not files and (hub := HUB_NAME.fullmatch(name)) and _kind(path) not in KNOWN_SUFFIXES:
            found.append(HubDataset(hub[1], split, hub[2]))
            continue
        if not files:
            raise NotFound(f"--data {name}: no such file, and no {', '.join(KNOWN_SUFFIXES)} in such a folder or glob")
        found += files
    for source in found:
        if isinstance(source, Path) and _kind(source) not in KNOWN_SUFFIXES:
            raise UsageError(f"--data {source}: unknown kind of file; these are read: {', '.join(KNOWN_SUFFIXES)}")
    return found


def _kind(path: Path) -> str:
    """A file's suffix, a trailing .gz aside."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _open(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def read_records(sources: Sequence[Source], field: str) -> Iterator[Record]:
    """Records in order; a text file is one record, its text in `field`. Raises UsageError naming file and line."""
    for source in sources:
        if isinstance(source, HubDataset):
            yield from _read_hub(source)
            continue
        try:
            if _kind(source) in TEXT_SUFFIXES:
                with _open(source) as text:
                    yield Record({field: text.read()}, source.name, str(source))
            elif _kind(source) in JSON_LINES_SUFFIXES:
                yield from _read_json_lines(source)
            else:
                yield from _read_table(source)
        except UnicodeDecodeError as error:
            raise UsageError(f"{source}: not UTF-8 at byte {error.start}; convert the file") from error
        except EOFError as error:
            raise UsageError(f"{source}: ends too early ({error}); fetch the file again") from error
        except OSError as error:
            raise UsageError(f"{source}: {error.strerror or error}; make the file readable") from error


def _read_json_lines(path: Path) -> Iterator[Record]:
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                fields = json.loads(line)
            except ValueError as error:
                raise UsageError(f"{where}: not JSON ({error}); mend or remove the line") from error
            if not isinstance(fields, dict):
                raise UsageError(f"{where}: {type(fields).__name__}, not a JSON object; write one object a line")
            yield Record(fields, f"{path.name}:{number}", where)


def _read_table(path: Path) -> Iterator[Record]:
    import datasets

    try:
        rows = datasets.load_dataset(TABLE_FORMATS[_kind(path)], data_files=str(path), split="train", streaming=True)
        for number, fields in enumerate(rows, start=1):
            yield Record(fields, f"{path.name}:{number}", f"{path}: row {number}")
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(f"{path}: not readable as {TABLE_FORMATS[_kind(path)]} ({_first_line(error)})") from error


def _read_hub(source: HubDataset) -> Iterator[Record]:
    import datasets

    try:
        rows = datasets.load_dataset(source.name, source.subset, split=source.split, streaming=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise NotFound(
            f"--data {source.label} --split {source.split}: no such file, and no such dataset on the Hub "
            f"({_first_line(error)})"
        ) from error
    for number, fields in enumerate(rows, start=1):
        where = f"{source.label}/{source.split}:{number}"
        yield Record(fields, where, where)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
