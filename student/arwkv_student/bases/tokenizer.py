"""The tokenizer in a model's folder."""

import shutil
from pathlib import Path
from typing import Any

from arwkv_store.errors import NotFound
from arwkv_store.format.layout import TOKENIZER_FILES
from arwkv_store.format.vocabulary import vocabulary_hash

TOKENIZER_AND_GENERATION = (
    *TOKENIZER_FILES,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)
"""What belongs to a student besides its configuration and weights."""


def open_tokenizer(what: str, folder: Path) -> Any:  # transformers is untyped
    """The folder's tokenizer. Raises NotFound where there is none; `what` names the folder's model in the message."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise NotFound(f"{what}: no tokenizer in {folder}; copy its tokenizer.json there") from error


def tokenizer_hash(what: str, folder: Path, ids: int) -> tuple[str, list[str]]:
    """The hash of the folder's tokens below the id `ids`, and its further tokens by id.

    Shards made with these tokens have the same hash, whatever was added behind. Raises NotFound without a tokenizer.
    """
    by_id = sorted(open_tokenizer(what, folder).get_vocab().items(), key=lambda entry: entry[1])
    shared = {token: token_id for token, token_id in by_id if token_id < ids}
    return vocabulary_hash(shared), [token for token, token_id in by_id if token_id >= ids]


def copy_tokenizer(source: Path, out: Path) -> None:
    """Copy the tokenizer's files (and the generation settings) to the student's folder."""
    out.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_AND_GENERATION:
        if (source / name).is_file() and source.resolve() != out.resolve():
            shutil.copyfile(source / name, out / name)
