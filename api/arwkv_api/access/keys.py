"""Bearer keys: made once, stored as hashes with a name and scopes, compared in constant time."""

import hashlib
import hmac
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from arwkv_store.errors import UsageError

Scope = Literal["read", "write"]
PREFIX = "arwkv_"


@dataclass(frozen=True)
class Key:
    """A known key: SHA-256 of the secret, in hex. A secret has 256 random bits, so a slow hash adds nothing."""

    name: str
    scopes: frozenset[Scope]
    digest: str


def digest_of(secret: str) -> str:
    """The hash under which a secret is stored."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def find_key(keys: tuple[Key, ...], secret: str) -> Key | None:
    """The key with this secret, in constant time."""
    digest = digest_of(secret)
    found = None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


def load_keys(path: Path) -> tuple[Key, ...]:
    """Read a key file: a JSON list of objects `name`, `scopes`, `digest`. Raises UsageError."""
    try:
        entries = json.loads(path.read_text())
        keys = tuple(Key(str(e["name"]), frozenset(e["scopes"]), str(e["digest"])) for e in entries)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f'--keys {path}: {error!r}; make a key with "api key --keys {path} --name NAME"') from error
    for key in keys:
        if not key.scopes <= set(get_args(Scope)) or len(key.digest) != 64:
            raise UsageError(f"--keys {path}: key {key.name!r}: needs scopes among read, write and a SHA-256 digest")
    return keys


def add_key(path: Path, name: str, scopes: frozenset[Scope]) -> str:
    """Make a key, add its hash to the file, which only its owner may read, and return the secret.

    Raises UsageError if the name is taken or the file cannot be read.
    """
    known = load_keys(path) if path.exists() else ()
    if any(key.name == name for key in known):
        raise UsageError(
            f"--name {name}: {path} already has a key of that name; choose another name, or delete that entry"
        )
    secret = PREFIX + secrets.token_urlsafe(32)
    entries = [*known, Key(name, scopes, digest_of(secret))]
    document = [{"name": key.name, "scopes": sorted(key.scopes), "digest": key.digest} for key in entries]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(document, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(fd)
    temporary.replace(path)
    return secret
