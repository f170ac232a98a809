"""The names of a dataset's files."""

import re
from collections.abc import Iterable

DATASET_FILE = "dataset.json"
SHARDS_FOLDER = "shards"
ADDRESS_DIGITS = 32
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""Files of the teacher's tokenizer next to dataset.json, if it has them. They do not identify it: dataset.json has
the vocabulary's hash, and readers compare it."""
CORPUS_FILE = "corpus.json"
"""The producer's report of what it read; it decides nothing either."""
NOTES_FILE = "notes.json"
"""People's notes and tags, beside a dataset or a run."""
BESIDE_FILES = (*TOKENIZER_FILES, CORPUS_FILE, NOTES_FILE)
RUN_FILE = "metrics.jsonl"
"""What makes a folder a training run."""
_PART_FILE = re.compile(
    rf"part-(\d{{6}}|[1-9]\d{{6,11}})\.(json|(?:[0-9a-f]{{{ADDRESS_DIGITS}}}\.)?(?:hidden\.)?arrow)", re.ASCII
)


def part_stem(part: int) -> str:
    """File name of a part without its ending."""
    return f"part-{part:06d}"


def data_file_name(part: int, kind: str, sha256: str = "") -> str:
    """Name of a part's "rows" or "hidden" file; in an object store it holds the first digits of the file's `sha256`."""
    digits = f".{sha256[:ADDRESS_DIGITS]}" if sha256 else ""
    return f"{part_stem(part)}{digits}{'.arrow' if kind == 'rows' else '.hidden.arrow'}"


def manifest_name(part: int) -> str:
    """Name of a part's manifest."""
    return f"{part_stem(part)}.json"


def manifest_uri(uri: str, part: int) -> str:
    """The place of a part's manifest in the dataset at `uri`, for messages."""
    return f"{uri}/{SHARDS_FOLDER}/{manifest_name(part)}"


def part_of(name: str) -> tuple[int, str] | None:
    """The part of a file in a shards folder, and its ending ("json" or a data file's); None for other files."""
    match = _PART_FILE.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


def committed_parts(names: Iterable[str]) -> set[int]:
    """The parts whose manifest is among these file names of a shards folder."""
    return {named[0] for named in map(part_of, names) if named is not None and named[1] == "json"}
