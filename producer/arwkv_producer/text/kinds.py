"""Kinds of files that hold text, by the names' suffixes."""

from pathlib import PurePosixPath

from arwkv_store.text.json_lines import COMPRESSED

TEXT = (".txt", ".text", ".md")
JSON_LINES = (".jsonl", ".ndjson")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
KNOWN = (*TEXT, *JSON_LINES, ".json", ".parquet", *SEPARATORS, ".arrow")


def kind_of(name: str) -> str:
    """A file name's suffix in lower case, without the suffix of the compression."""
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in COMPRESSED else path.suffix
