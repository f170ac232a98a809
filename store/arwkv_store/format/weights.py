"""The hash of a checkpoint: the producer records it, and the student compares it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from arwkv_store.format.file_hash import pieces_of

CONFIG_NOT_HASHED = ("transformers_version", "_name_or_path")
"""Fields of config.json that do not affect what the model computes."""


def hash_of_checkpoint(folder: Path, config: Mapping[str, Any]) -> str:
    """Both hashes of a folder, as `WEIGHTS-CONFIG`: what `dataset.json` records of its teacher."""
    return f"{hash_of_weights(folder)}-{hash_of_config(config)}"


def hash_of_weights(folder: Path) -> str:
    """xxh3-128 over a folder's weight files, names and contents."""
    digest = xxhash.xxh3_128()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(path.name.encode())
        with path.open("rb", buffering=0) as file:
            for piece in pieces_of(file):
                digest.update(piece)
    return digest.hexdigest()


def hash_of_config(config: Mapping[str, Any]) -> str:
    """xxh3-128 over the fields of a config.json that affect what the model computes."""
    decisive = {name: value for name, value in config.items() if name not in CONFIG_NOT_HASHED}
    return xxhash.xxh3_128_hexdigest(json.dumps(decisive, sort_keys=True).encode())
