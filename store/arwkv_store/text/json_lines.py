"""Lines of JSON as people keep them: compressed or not, with a byte order mark or not. Each error names its line."""

import bz2
import codecs
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import IO, Any

import pyarrow as pa

from arwkv_store.errors import UsageError


def _zstd(file: IO[bytes]) -> IO[bytes]:
    # Unlike zstandard's reader, Arrow's refuses a file that ends within a frame.
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"))


COMPRESSED: Mapping[str, Callable[[IO[bytes]], Any]] = {
    ".gz": gzip.open,
    ".zst": _zstd,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
"""By a file name's last suffix, what reads the file behind it."""


def decompressed(file: IO[bytes], name: str) -> IO[bytes]:
    """The content of an open file, whose name says whether it is compressed."""
    reader = COMPRESSED.get(PurePath(name).suffix)
    return file if reader is None else reader(file)


def json_lines(lines: Iterable[bytes], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The object of each line that is not blank, after its number from 1.

    Raises UsageError, naming file and line, for one that is not UTF-8, not JSON, or not an object.
    """
    for number, line in enumerate(text_lines(lines, name), start=1):
        if line.strip():
            yield number, _json_object(line, f"{name}:{number}")


def text_lines(lines: Iterable[bytes], name: str) -> Iterator[str]:
    """The lines as text, without a byte order mark. Raises UsageError, naming file and line, for one not in UTF-8."""
    for number, line in enumerate(lines, start=1):
        try:
            yield (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"{name}:{number}: not UTF-8 at byte {error.start} of the line; convert it") from error


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON ({error}); fix or remove the line") from error
    if not isinstance(fields, dict):
        raise UsageError(f"{where}: {type(fields).__name__}, not a JSON object; write one object per line")
    return fields


def require_characters(text: str, where: str) -> str:
    """The text. Raises UsageError where it holds half of a surrogate pair, or an argument's byte that is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{where}: {text[error.start]!a} at character {error.start} is not a character (half of a surrogate "
            "pair, or a byte that is not UTF-8); fix or remove the text"
        ) from error
    return text
