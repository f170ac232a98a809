"""Real text that is on the machine, split by file into training and held-out documents."""

import ast
import dataclasses
import glob
import hashlib
import json
import random
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from arwkv_store.errors import UsageError

LONGEST_DOCUMENT = 20_000
"""Characters taken of one file, so that no single file decides what is measured."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents {"text", "source"} split by file: no line of a held-out file is ever trained on."""

    train: list[dict[str, str]]
    heldout: list[dict[str, str]]


def read_corpus(pattern: str | None, *, prose: bool = False) -> Corpus:
    """Read the UTF-8 files of at least 200 characters that `pattern` matches.

    None stands for the Python standard library's sources, with `prose` beside the descriptions of the installed
    packages, which are English. The hash of its relative path decides whether a file is held out, so the split does not
    move when files come and go. Raises UsageError when either half would be empty.
    """
    corpus = Corpus([], [])
    for root, path in _files(pattern, prose):
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, IsADirectoryError):
            continue
        if path.name == "METADATA":
            text = text.partition("\n\n")[2]  # the description follows the headers
        if len(text) >= 200:
            source = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
            held_out = hashlib.sha256(source.encode()).digest()[0] < 13  # 13/256: one file in twenty
            (corpus.heldout if held_out else corpus.train).append({"text": text, "source": source})
    if not corpus.train or not corpus.heldout:
        raise UsageError(
            f"--text {pattern}: {len(corpus.train)} training and {len(corpus.heldout)} held-out files of 200 or more "
            "characters; name a glob that matches some dozens of text files"
        )
    return corpus


def _files(pattern: str | None, prose: bool) -> Iterator[tuple[Path, Path]]:
    """(folder that names are relative to, file)."""
    if pattern is not None:
        root = Path(pattern.split("*", 1)[0] or ".")
        yield from ((root, path) for path in sorted(map(Path, glob.glob(pattern, recursive=True))))
        return
    library, packages = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    sources = (path for path in library.rglob("*.py") if "site-packages" not in path.parts)
    yield from ((library, path) for path in sorted(sources))
    if prose:
        yield from ((packages, path) for path in sorted(packages.glob("*.dist-info/METADATA")))


def conversations(documents: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """Questions about the documented functions in Python sources, answered by their docstrings; field `messages`."""
    for document in documents:
        try:
            tree = ast.parse(document["text"])
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            answer = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
            if answer and isinstance(node, ast.FunctionDef) and len(answer) >= 80:
                question = f"What does `{node.name}({ast.unparse(node.args)})` in {document['source']} do?"
                turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                yield {"messages": turns, "source": document["source"]}


def shuffled(documents: list[Any], seed: int = 1) -> list[Any]:
    """The documents in a fixed shuffled order."""
    order = list(documents)
    random.Random(seed).shuffle(order)
    return order


def within(budget: int, documents: Iterable[dict[str, Any]], tokenizer: Any) -> Iterator[dict[str, Any]]:
    """The first documents, cut to LONGEST_DOCUMENT characters, until they hold `budget` tokens."""
    for document in documents:
        if budget <= 0:
            return
        if "text" in document:
            document = {**document, "text": document["text"][:LONGEST_DOCUMENT]}
            budget -= len(tokenizer(document["text"])["input_ids"])
        else:
            budget -= sum(len(tokenizer(turn["content"])["input_ids"]) for turn in document["messages"])
        yield document


def write_jsonl(path: Path, documents: list[dict[str, Any]]) -> None:
    """Write one JSON document a line."""
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
