"""The rows of stage 3: records of a JSONL file as token ids, tokenized once and kept in the cache of `datasets`."""

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, Value
from datasets.exceptions import DatasetGenerationError

from arwkv_store.errors import ArwkvError, UsageError
from arwkv_store.format.file_hash import sha256_of_file
from arwkv_store.text import chat_template, turns
from arwkv_student.bases.tokenizer import TOKENIZER_AND_GENERATION
from arwkv_student.data import conversations
from arwkv_student.data.conversations import Example, Pair, Record, examples, pairs, read_records

KINDS: dict[str, tuple[type[Example | Pair], Any]] = {"sft": (Example, examples), "dpo": (Pair, pairs)}
RECORD = Features({"fields": Value("large_string"), "where": Value("string")})


def read_rows(
    stage: str, file: Path, flag: str, tokenizer: Any, folder: Path, max_length: int, workers: int = 1
) -> Dataset:
    """The file as TRL's rows: the fields of `Example` (sft) or `Pair` (dpo). `folder` is the tokenizer's.

    Tokenized by `workers` processes, and only if no earlier start did: the cache's key is the content of the file, the
    tokenizer, its template, and the code that reads records. Raises UsageError if no row remains, NotFound without the
    file.
    """
    if not file.is_file():
        next(read_records(file, flag))  # raises
    content = sha256_of_file(file)
    kind, _ = KINDS[stage]
    columns = {field.name: datasets.List(Value("int32")) for field in dataclasses.fields(kind)}
    try:
        records = Dataset.from_generator(
            _lines, RECORD, gen_kwargs={"file": file, "flag": flag}, fingerprint=_hash([content, str(file)])
        )
    except DatasetGenerationError as error:
        raise error.__cause__ if isinstance(error.__cause__, ArwkvError) else error from None
    rows = records.map(
        _tokenized,
        batched=True,
        fn_kwargs={"stage": stage, "tokenizer": tokenizer, "max_length": max_length},
        remove_columns=records.column_names,
        features=Features(columns),
        num_proc=workers if workers > 1 else None,
        new_fingerprint=_hash(
            [content, str(file), stage, max_length, tokenizer.chat_template, *_files(folder), _code()]
        ),
        desc=f"tokenizing {file}",
    )
    if not len(rows):
        raise UsageError(f"{flag} {file}: no reply within {max_length} tokens; raise --max-length")
    return rows


def as_rows(some: Sequence[Example | Pair]) -> Dataset:
    """Tokenized conversations or pairs in TRL's form."""
    return Dataset.from_list([dataclasses.asdict(row) for row in some])


def _lines(file: Path, flag: str) -> Iterator[dict[str, str]]:
    for record in read_records(file, flag):
        yield {"fields": json.dumps(record.fields), "where": record.where}


def _tokenized(batch: dict[str, list[str]], stage: str, tokenizer: Any, max_length: int) -> dict[str, list[list[int]]]:
    kind, tokenize = KINDS[stage]
    records = (Record(json.loads(text), where) for text, where in zip(*batch.values(), strict=True))
    found = list(tokenize(records, tokenizer, max_length))
    return {field.name: [getattr(row, field.name) for row in found] for field in dataclasses.fields(kind)}


def _files(folder: Path) -> list[str]:
    """Hashes of the tokenizer's files."""
    return [sha256_of_file(folder / name) for name in TOKENIZER_AND_GENERATION if (folder / name).is_file()]


def _code() -> str:
    return "".join(map(inspect.getsource, (conversations, chat_template, turns)))


def _hash(what: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]
