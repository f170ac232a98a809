"""The records of sources, one after another. Errors name file and line."""

import codecs
import csv
import io
import json
import lzma
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet

from arwkv_producer.text.kinds import JSON_LINES, SEPARATORS, TEXT, kind_of
from arwkv_producer.text.records import Record
from arwkv_producer.text.sources import DataFile, HubDataset, Source
from arwkv_store.errors import NotFound, UsageError
from arwkv_store.format.model_files import LFS_POINTER
from arwkv_store.text.json_lines import decompressed, json_lines, text_lines

ROWS_AT_A_TIME = 256


def read_records(sources: Sequence[Source], field: str) -> Iterator[Record]:
    """Records in order; a text file is one record, its text in `field`. Raises UsageError naming file and line."""
    for source in sources:
        if isinstance(source, HubDataset):
            yield from _read_hub(source)
            continue
        with _faults_named(source.path), source.open() as stored:
            if stored.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UsageError(f'{source.path}: a Git LFS pointer, not the data; fetch it with "git lfs pull"')
            stored.seek(0)
            with decompressed(stored, source.path) as file:
                yield from _read_file(source, file, field)


def _read_file(source: DataFile, file: IO[bytes], field: str) -> Iterator[Record]:
    kind, path = kind_of(source.path), source.path
    if kind in TEXT:
        yield Record({field: _text(file.read())}, source.label, path)
    elif kind in JSON_LINES or kind == ".json":
        for where, number, fields in _read_json(file, path, array=kind == ".json"):
            yield Record(fields, f"{source.label}:{number}", where)
    else:
        rows = _read_separated(file, path, SEPARATORS[kind]) if kind in SEPARATORS else _read_table(file, kind)
        for number, fields in enumerate(rows, start=1):
            yield Record(fields, f"{source.label}:{number}", f"{path}: row {number}")


def _text(content: bytes) -> str:
    """Text in UTF-8, its lines ended in any of the usual ways."""
    with io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig") as text:
        return text.read()


def _read_json(file: Iterable[bytes], path: str, *, array: bool) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Objects, one a line, or all in one array."""
    lines = iter(file)
    first = next(lines, b"")
    if not array or not first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        for number, fields in json_lines(_again(first, lines), path):
            yield f"{path}:{number}", number, fields
        return
    try:
        rows = json.loads(_text(b"".join(_again(first, lines))))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON ({error}); fix the file") from error
    for number, fields in enumerate(rows, start=1):
        if not isinstance(fields, dict):
            raise UsageError(f"{path}: row {number}: {type(fields).__name__}, not an object; fix the file")
        yield f"{path}: row {number}", number, fields


def _again(first: bytes, rest: Iterable[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _read_separated(file: Iterable[bytes], path: str, separator: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    return csv.DictReader(text_lines(file, path), delimiter=separator, strict=True)


def _read_table(file: IO[bytes], kind: str) -> Iterator[dict[str, Any]]:
    if kind == ".parquet":
        batches = pyarrow.parquet.ParquetFile(file).iter_batches(ROWS_AT_A_TIME)
    else:
        magic = file.read(6)
        file.seek(0)
        opened = pa.ipc.open_file(file) if magic == b"ARROW1" else pa.ipc.open_stream(file)
        batches = map(opened.get_batch, range(opened.num_record_batches)) if magic == b"ARROW1" else opened
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS_AT_A_TIME):
            yield from batch.slice(start, ROWS_AT_A_TIME).to_pylist()


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


@contextmanager
def _faults_named(path: str) -> Iterator[None]:
    """Inside the block, what a file's reader raises ends as a UsageError that names the file."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}; convert the file") from error
    except EOFError as error:
        raise UsageError(f"{path}: ends too early ({error}); fetch the file again") from error
    except (pa.ArrowException, csv.Error, lzma.LZMAError, zlib.error, OSError) as error:
        raise UsageError(f"{path}: not readable ({_first_line(error)}); fetch the file again, or fix it") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
