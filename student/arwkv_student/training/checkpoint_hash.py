"""Which student a folder holds, by content."""

import hashlib
from pathlib import Path

from arwkv_store.errors import NotFound


def checkpoint_hash(folder: Path) -> str:
    """sha256 over a student's configuration and weight files. Raises NotFound without weights."""
    weights = sorted(folder.glob("model*.safetensors"))
    if not weights:
        raise NotFound(f"model {folder}: no model.safetensors there; name a trained student's folder")
    digest = hashlib.sha256()
    for file in (folder / "config.json", *weights):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
