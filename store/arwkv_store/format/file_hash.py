"""The SHA-256 of a file, or of a stream of bytes."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

PIECE_BYTES = 1 << 20


def sha256_of(pieces: Iterable[bytes | memoryview]) -> str:
    """The SHA-256 of the pieces together, 64 hex digits."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's content, 64 hex digits. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        return sha256_of(pieces_of(file))


def pieces_of(file: IO[bytes]) -> Iterator[memoryview]:
    """The rest of an open file in pieces; each is valid until the next one. Raises OSError."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    # An unbuffered file has `readinto`, which the type of binary files does not name.
    while size_bytes := file.readinto(buffer):  # type: ignore[attr-defined]
        yield buffer[:size_bytes]
