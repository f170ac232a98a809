"""Rows of a student's head that belong to no token: `generate` never picks them, whoever loads the folder."""

import json
from pathlib import Path

from transformers import AutoTokenizer

from arwkv_store.format.layout import TOKENIZER_FILES
from arwkv_student.model.loading import padding_rows
from arwkv_student.run.durable import write_json


def suppress_padding_rows(folder: Path) -> None:
    """Name the padding rows in the folder's generation settings; without a tokenizer there, leave them as they are."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES[:2]):
        return
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    file = folder / "generation_config.json"
    document = json.loads(file.read_text()) if file.is_file() else {}
    padding = padding_rows(AutoTokenizer.from_pretrained(folder), rows)
    if padding != document.get("suppress_tokens"):
        write_json(file, document | {"suppress_tokens": padding})
