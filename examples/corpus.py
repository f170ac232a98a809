"""Real text that is on the machine, split by file into training and held-out documents."""

import dataclasses
import glob
import hashlib
import json
import sysconfig
from pathlib import Path

from arwkv_store.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents {"text", "source"} split by file: no line of a held-out file is ever trained on."""

    train: list[dict[str, str]]
    heldout: list[dict[str, str]]


def read_corpus(pattern: str | None) -> Corpus:
    """Read the UTF-8 files of at least 200 characters that `pattern` matches.

    None stands for the Python standard library's sources. The hash of its relative path decides whether a file is held
    out, so the split does not move when files come and go. Raises UsageError when either half would be empty.
    """
    if pattern is None:
        root = Path(sysconfig.get_path("stdlib"))
        paths = [path for path in root.rglob("*.py") if "site-packages" not in path.parts]
    else:
        root = Path(pattern.split("*", 1)[0] or ".")
        paths = [Path(name) for name in glob.glob(pattern, recursive=True)]
    corpus = Corpus([], [])
    for path in sorted(paths):
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, IsADirectoryError):
            continue
        if len(text) < 200:
            continue
        source = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
        held_out = hashlib.sha256(source.encode()).digest()[0] < 13  # 13/256: one file in twenty
        (corpus.heldout if held_out else corpus.train).append({"text": text, "source": source})
    if not corpus.train or not corpus.heldout:
        raise UsageError(
            f"--text {pattern}: {len(corpus.train)} training and {len(corpus.heldout)} held-out files of 200 or more "
            "characters; name a glob that matches some dozens of text files"
        )
    return corpus


def write_jsonl(path: Path, documents: list[dict[str, str]]) -> None:
    """Write one JSON document a line."""
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
