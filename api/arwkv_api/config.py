"""The flags of `api serve` and `api key`, and the settings of the application."""

import hashlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

import tyro

from arwkv_store.commands.command_line import VERBATIM, unset
from arwkv_store.errors import UsageError

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
# Entries of trusted_hosts: every host, and every address but no name. A page of another site can reach this service
# by a name of its own (DNS rebinding), never by an address. Neither entry can be a host's name.
ANY_HOST, ANY_ADDRESS = "*", "[*]"


@dataclass(frozen=True)
class Settings:
    """Everything the application needs to know, validated once. Roots and runs are resolved folders."""

    roots: tuple[Path, ...]
    runs: tuple[Path, ...]
    database: str
    api_key: str | None = None
    keys: Path | None = None
    public_read: bool = False
    trusted_hosts: tuple[str, ...] = LOOPBACK_HOSTS
    scan_interval_s: float = 1.0
    log_format: Literal["text", "json"] = "text"
    request_limit_bytes: int = 1 << 20
    range_limit: int = 16
    requests_per_s: float = 0.0
    verify_mb_per_s: float | None = 0.0


@dataclass(frozen=True, kw_only=True)
class Content:
    """What is served."""

    root: Annotated[tuple[tuple[Path, ...], ...], tyro.conf.UseAppendAction]
    """Dataset folder, or folder of dataset folders. Several may follow, and the flag may be repeated."""

    runs: Annotated[tuple[tuple[Path, ...], ...], tyro.conf.UseAppendAction] = ()
    """Folders of training runs to show. Runs inside the roots are found without this."""

    json: bool = False
    """Print one JSON line with the address on stdout when the service is ready."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """Where the service listens, and under which names."""

    host: str = "127.0.0.1"
    """Address to bind. An address that is not a loopback address needs a key."""

    port: int = 8000
    """Port to bind. 0 takes a free one."""

    trusted_host: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """More host names that callers may use in their Host header. `*`: any name.
    Loopback names and the bound address are always trusted.
    If the service is bound to all addresses, every address and this machine's own name are trusted too."""


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Who may read and write."""

    api_key: Annotated[str | None, VERBATIM, unset("KEY", "default: ARWKV_API_KEY, if set")] = None
    """Bearer key with read and write scope.
    Every user of this machine can see the flags of a process. Set ARWKV_API_KEY instead, or use --keys."""

    keys: Annotated[Path | None, unset("FILE", "default: no file")] = None
    """File of hashed keys with scopes, as written by `api key`."""

    public_read: bool = False
    """Callers without a key may read, although keys are set. Writing still needs a key."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """How the index of the folders is kept."""

    database: Annotated[
        str | None,
        unset("URL", "default: a SQLite file in the cache folder"),
    ] = None
    """SQLAlchemy URL of the index. The index is a cache and can be deleted."""

    workers: int = 1
    """Server processes that share the port and the index."""

    scan_interval_s: float = 1.0
    """Seconds between two scans of the roots. A slow root is scanned less often."""

    verify_mb_per_s: Annotated[
        float | None,
        unset("FLOAT", "default: as much as that takes, from 8 to 200"),
    ] = None
    """Megabytes per second that are read in the background to verify each shard's files once a week. 0: none."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one caller may request."""

    request_limit_bytes: int = 1 << 20
    """Largest request body. A larger one is answered with 413."""

    range_limit: int = 16
    """Maximum number of ranges in one download. More are answered with 416."""

    requests_per_s: float = 0.0
    """Requests per second that one address may make over all workers, in bursts of up to ten seconds. 0: no limit."""

    shutdown_timeout_s: int = 30
    """Seconds that running transfers have to finish after SIGTERM."""

    log_format: Literal["text", "json"] = "text"
    """Format of the log on stderr."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig(Content, Network, Keys, Index, Limits):
    """Index dataset folders and serve them over HTTP, with a page for people."""

    def __post_init__(self) -> None:
        if not any(self.root):
            raise UsageError("--root: no folder given; write --root DIR")
        for name, least in (("workers", 1), ("range_limit", 1), ("request_limit_bytes", 1), ("shutdown_timeout_s", 0)):
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} {getattr(self, name)}: must be at least {least}")
        if not 0 <= self.port <= 65535:
            raise UsageError(f"--port {self.port}: must be between 0 and 65535")
        if self.verify_mb_per_s is not None and not self.verify_mb_per_s >= 0:
            raise UsageError(f"--verify-mb-per-s {self.verify_mb_per_s}: must be 0 or more")
        if not self.scan_interval_s > 0:
            raise UsageError(f"--scan-interval-s {self.scan_interval_s}: must be greater than 0")

    def settings(self) -> Settings:
        """Resolve folders and defaults. Raises UsageError for a missing folder or an open bind without a key."""
        roots = _folders("--root", self.root)
        api_key = self.api_key or os.environ.get("ARWKV_API_KEY") or None
        if not is_loopback(self.host) and api_key is None and self.keys is None:
            raise UsageError(
                f"--host {self.host}: other machines can reach it and no key is set; "
                'set ARWKV_API_KEY, give --keys FILE (made by "api key"), or bind 127.0.0.1'
            )
        return Settings(
            roots=roots,
            runs=_folders("--runs", self.runs),
            database=self.database or default_database(roots),
            api_key=api_key,
            keys=self.keys,
            public_read=self.public_read,
            trusted_hosts=(*_bound_hosts(self.host), *(name.lower() for names in self.trusted_host for name in names)),
            scan_interval_s=self.scan_interval_s,
            log_format=self.log_format,
            request_limit_bytes=self.request_limit_bytes,
            range_limit=self.range_limit,
            # Each worker counts its own requests; together they allow no more than the flag.
            requests_per_s=self.requests_per_s / self.workers,
            verify_mb_per_s=self.verify_mb_per_s,
        )


@dataclass(frozen=True)
class KeyConfig:
    """Make a bearer key, and add its hash to a key file for `api serve --keys`."""

    keys: Path
    """File to add the key to. It is created if it does not exist."""

    name: str
    """Who or what the key is for. The audit log shows this name."""

    scope: tuple[Literal["read", "write"], ...] = ("read",)
    """What the key may do: read, or read write."""

    json: bool = False
    """Print one JSON document with the key on stdout."""


def is_loopback(host: str) -> bool:
    """True when only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _bound_hosts(host: str) -> tuple[str, ...]:
    """The names that callers of this address may use."""
    if host in ("0.0.0.0", "::"):
        return (*LOOPBACK_HOSTS, ANY_ADDRESS, socket.gethostname().lower())
    return (*LOOPBACK_HOSTS, host.lower())


def default_database(roots: Sequence[Path]) -> str:
    """SQLite URL in the user's cache folder, one file per set of roots."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arwkv"
    digest = hashlib.sha256("\0".join(map(str, roots)).encode()).hexdigest()[:16]
    return f"sqlite:///{cache / f'index-{digest}.sqlite3'}"


def _folders(flag: str, groups: Sequence[Sequence[Path]]) -> tuple[Path, ...]:
    folders = dict.fromkeys(path.expanduser().resolve() for group in groups for path in group)
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{flag} {folder}: not a folder; name an existing one")
    return tuple(folders)
