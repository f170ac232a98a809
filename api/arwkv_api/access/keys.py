"""Bearer keys: made once, stored as hashes with a name and scopes, compared in constant time."""

import hashlib
import hmac
import json
import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

from arwkv_store.errors import UsageError

Scope = Literal["read", "write"]
PREFIX = "arwkv_"
MOST_DAYS = 36_500


@dataclass(frozen=True)
class Key:
    """A known key: SHA-256 of the secret, in hex. A secret has 256 random bits, so a slow hash adds nothing."""

    name: str
    scopes: frozenset[Scope]
    digest: str
    datasets: tuple[str, ...] = ()
    """Names of the datasets that it is for, or prefixes that end with `*`; none: all, and runs."""
    expires_at: datetime | None = None

    def admits(self, dataset: str) -> bool:
        """Whether the key is for this dataset."""
        return not self.datasets or any(
            dataset.startswith(name[:-1]) if name.endswith("*") else dataset == name for name in self.datasets
        )

    def has_expired(self) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and datetime.now(UTC) >= self.expires_at

    def described(self) -> str:
        """The key in a line, without its secret."""
        what = f"{self.name}: {', '.join(sorted(self.scopes))}"
        what += f"; only {', '.join(self.datasets)}" if self.datasets else ""
        return what + (f"; until {self.expires_at:%Y-%m-%d %H:%M} UTC" if self.expires_at else "")

    def as_document(self) -> dict[str, object]:
        """Name, scopes and limits, for JSON."""
        document: dict[str, object] = {"name": self.name, "scopes": sorted(self.scopes)}
        if self.datasets:
            document["datasets"] = list(self.datasets)
        if self.expires_at is not None:
            document["expires_at"] = self.expires_at.isoformat()
        return document


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
    """Read a key file: a JSON list of objects `name`, `scopes`, `digest`, perhaps `datasets` and `expires_at`.

    Raises UsageError.
    """
    try:
        keys = tuple(map(_key, json.loads(path.read_text())))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f'--keys {path}: {error!r}; make a key with "api key --keys {path} --name NAME"') from error
    for key in keys:
        if not key.scopes <= set(get_args(Scope)) or len(key.digest) != 64:
            raise UsageError(f"--keys {path}: key {key.name!r}: needs scopes among read, write and a SHA-256 digest")
    return keys


def _key(entry: dict[str, Any]) -> Key:
    end = entry.get("expires_at")
    expires_at = None if end is None else datetime.fromisoformat(end)
    if expires_at is not None and expires_at.tzinfo is None:
        raise ValueError(f"expires_at {end!r} has no time zone")
    datasets = entry.get("datasets", [])
    if not isinstance(datasets, list) or not all(isinstance(name, str) and name for name in datasets):
        raise ValueError(f"datasets {datasets!r}: not a list of names")
    return Key(str(entry["name"]), frozenset(entry["scopes"]), str(entry["digest"]), tuple(datasets), expires_at)


def add_key(
    path: Path, name: str, scopes: frozenset[Scope], datasets: tuple[str, ...] = (), days: float | None = None
) -> tuple[Key, str]:
    """Make a key, add its hash to the file, which only its owner may read, and return it with its secret.

    Raises UsageError if the name is taken, a limit cannot be used or the file cannot be read.
    """
    if days is not None and not 0 < days <= MOST_DAYS:
        raise UsageError(f"--days {days}: must be greater than 0 and at most {MOST_DAYS}")
    if not all(datasets):
        raise UsageError("--dataset: a name is empty; leave the flag out for a key for all datasets")
    known = load_keys(path) if path.exists() else ()
    if any(key.name == name for key in known):
        raise UsageError(
            f"--name {name}: {path} already has a key of that name; choose another name, or delete that entry"
        )
    secret = PREFIX + secrets.token_urlsafe(32)
    expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
    made = Key(name, scopes, digest_of(secret), datasets, expires_at)
    document = [{**key.as_document(), "digest": key.digest} for key in (*known, made)]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(document, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(fd)
    temporary.replace(path)
    return made, secret
