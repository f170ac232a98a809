"""Text documents from files: one per line of .jsonl, one per .txt file."""

import glob
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from arwkv_store.errors import NotFound, UsageError

TEXT_SUFFIXES = (".txt", ".text", ".md")
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Document:
    """A document's text and where it stands: `file.jsonl:12`, `file.txt`."""

    text: str
    source: str


def find_files(sources: Sequence[str]) -> list[Path]:
    """The files that files, folders and globs name, each source's in sorted order.

    Raises NotFound for a source that names none, UsageError for a file of another kind.
    """
    found: list[Path] = []
    for source in sources:
        path = Path(source).expanduser()
        if path.is_dir():
            kinds = TEXT_SUFFIXES + JSON_LINES_SUFFIXES
            files = sorted(file for file in path.rglob("*") if file.suffix in kinds and file.is_file())
        elif path.is_file():
            files = [path]
        else:
            files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not files:
            raise NotFound(f"--data {source}: no such file, and no .jsonl or .txt file in such a folder or glob")
        found += files
    for path in found:
        if path.suffix not in TEXT_SUFFIXES + JSON_LINES_SUFFIXES:
            raise UsageError(f"--data {path}: unknown kind of file; .jsonl and .txt are read")
    return found


def read_documents(files: Sequence[Path], field: str) -> Iterator[Document]:
    """Documents in the order of files and lines. Raises UsageError naming file and line of what cannot be read."""
    for path in files:
        try:
            if path.suffix in TEXT_SUFFIXES:
                yield Document(path.read_text(encoding="utf-8"), path.name)
            else:
                yield from _read_json_lines(path, field)
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: not UTF-8 at byte {error.start}; convert the file") from error
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}; make the file readable") from error


def _read_json_lines(path: Path, field: str) -> Iterator[Document]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UsageError(f"{where}: not JSON ({error}); mend or remove the line") from error
            if not isinstance(record, dict) or field not in record:
                known = ", ".join(record) if isinstance(record, dict) else type(record).__name__
                raise UsageError(f"{where}: no field {field!r} (it has: {known}); name the text's field with --field")
            if not isinstance(record[field], str):
                kind = type(record[field]).__name__
                raise UsageError(
                    f"{where}: field {field!r} is {kind}, not a string; name the text's field with --field"
                )
            yield Document(record[field], f"{path.name}:{number}")
