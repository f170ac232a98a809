"""JSON documents that carry a hash of themselves.

A sealed document is compact JSON whose last member is "self_hash": the SHA-256, in hex, of every byte before the comma
that introduces it. So one comparison of the raw bytes verifies the document before it is parsed.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from arwkv_store.errors import CorruptShard, UsageError

MAX_DOCUMENT_BYTES = 1 << 20
"""The manifest of a part of 40 GB fits: its batches of 4 MiB take 100 bytes each."""
_OPEN, _CLOSE = b',"self_hash":"', b'"}\n'
_SEAL_BYTES = len(_OPEN) + 64 + len(_CLOSE)


def sealed(document: Mapping[str, Any]) -> bytes:
    """The document, of at least one member, as bytes that `unsealed` accepts. Raises UsageError for one too large."""
    body = json.dumps(document, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()[:-1]
    if len(body) > MAX_DOCUMENT_BYTES - _SEAL_BYTES:
        raise UsageError(
            f"the document has {len(body)} bytes, at most {MAX_DOCUMENT_BYTES} are allowed; "
            "put fewer samples into a part"
        )
    return body + _OPEN + hashlib.sha256(body).hexdigest().encode() + _CLOSE


def unsealed(raw: bytes, where: str) -> dict[str, Any]:
    """The verified document, without its seal. Raises CorruptShard if a single bit differs."""
    require_intact(raw, where)
    try:
        document: dict[str, Any] = from_json(raw[:-_SEAL_BYTES] + b"}")
    except ValueError as error:
        raise CorruptShard(f"{where}: not JSON ({error}); restore it from a copy") from error
    return document


def require_intact(raw: bytes, where: str) -> None:
    """Raise CorruptShard unless the bytes match the hash they carry."""
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise CorruptShard(
            f"{where}: longer than {MAX_DOCUMENT_BYTES} bytes, the limit of a document; restore it from a copy"
        )
    body, seal = raw[:-_SEAL_BYTES], raw[-_SEAL_BYTES:]
    expected = _OPEN + hashlib.sha256(body).hexdigest().encode() + _CLOSE
    if seal != expected:
        raise CorruptShard(f"{where}: its {len(raw)} bytes do not match their own hash; restore it from a copy")


def self_hash(raw: bytes) -> str:
    """The hash a sealed document carries."""
    return raw[-64 - len(_CLOSE) : -len(_CLOSE)].decode()
