"""The flags of `api serve` and `api key`, and the settings of the application."""

import hashlib
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
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
    """Everything the application needs to know, validated once. Runs are resolved folders, roots folders or URIs."""

    roots: tuple[str, ...]
    runs: tuple[Path, ...]
    database: str
    api_key: str | None = None
    keys: Path | None = None
    public_read: bool = False
    trusted_hosts: tuple[str, ...] = LOOPBACK_HOSTS
    trusted_proxies: tuple[str, ...] = ()
    path_prefix: str = ""
    scan_interval_s: float = 1.0
    store_scan_interval_s: float = 30.0
    redirects: bool = True
    sample_requests_per_day: int = 1000
    sample_mb_per_day: float = 1000.0
    log_format: Literal["text", "json"] = "text"
    request_limit_bytes: int = 1 << 20
    range_limit: int = 16
    requests_per_s: float = 0.0
    verify_mb_per_s: float | None = 0.0


@dataclass(frozen=True, kw_only=True)
class Content:
    """What is served."""

    root: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction]
    """Dataset folder, or folder of dataset folders: on a disk, s3://bucket/prefix, or another store of fsspec.
    Several may follow, and the flag may be repeated."""

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

    trusted_proxy: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """Addresses or networks of proxies (192.0.2.7, 10.0.0.0/8) that are believed when they name a caller in
    X-Forwarded-For and X-Forwarded-Proto. From all others, these headers are ignored."""

    path_prefix: Annotated[str, unset("/PATH", "default: none")] = ""
    """Path under which a proxy passes requests on, as in /arwkv. Requests without it are answered, too."""


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
    """Seconds between two scans of the roots on disks. A slow root is scanned less often."""

    store_scan_interval_s: float = 30.0
    """Seconds between two scans of a root in an object store: one list request per 1,000 objects."""

    verify_mb_per_s: Annotated[
        float | None,
        unset("FLOAT", "default: as much as that takes, from 8 to 200"),
    ] = None
    """Megabytes per second that are read in the background to verify each shard's files once a week. 0: none.
    Shards in object stores are sampled instead."""

    sample_requests_per_day: int = 1000
    """Requests per day and root with which random regions of shards in an object store are verified. 0: none."""

    sample_mb_per_day: float = 1000.0
    """Megabytes per day and root that are read for that. 0: none."""

    downloads: Literal["redirect", "proxy"] = "redirect"
    """Downloads of files in an object store: from an address that the store signs, where it can, or through this
    service, for callers that cannot reach the store."""


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
        if self.path_prefix and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", self.path_prefix):
            raise UsageError(f"--path-prefix {self.path_prefix}: write a path without a slash at its end, as in /arwkv")
        for name in ("scan_interval_s", "store_scan_interval_s"):
            if not getattr(self, name) > 0:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be greater than 0")
        for name in ("sample_requests_per_day", "sample_mb_per_day"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be 0 or more")

    def settings(self) -> Settings:
        """Resolve folders and defaults. Raises UsageError for a missing folder or an open bind without a key."""
        roots = _roots(self.root)
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
            trusted_proxies=_networks(self.trusted_proxy),
            path_prefix=self.path_prefix,
            scan_interval_s=self.scan_interval_s,
            store_scan_interval_s=self.store_scan_interval_s,
            redirects=self.downloads == "redirect",
            sample_requests_per_day=self.sample_requests_per_day,
            sample_mb_per_day=self.sample_mb_per_day,
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

    dataset: Annotated[tuple[str, ...], unset("NAME [NAME ...]", "default: all datasets, and runs")] = ()
    """Only for these datasets. A name that ends with * is a prefix, as in team-a-*."""

    days: Annotated[float | None, unset("FLOAT", "default: no end")] = None
    """Days until the key expires."""

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


def _networks(groups: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Checked networks of proxies. Raises UsageError."""
    for name in (name for group in groups for name in group):
        try:
            ip_network(name)
        except ValueError as error:
            raise UsageError(f"--trusted-proxy {name}: {error}; write 192.0.2.7 or 10.0.0.0/8") from error
    return tuple(name for group in groups for name in group)


def default_database(roots: Sequence[str]) -> str:
    """SQLite URL in the user's cache folder, one file per set of roots."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arwkv"
    digest = hashlib.sha256("\0".join(roots).encode()).hexdigest()[:16]
    return f"sqlite:///{cache / f'index-{digest}.sqlite3'}"


def _roots(groups: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Resolved folders and URIs without a slash at the end. Raises UsageError."""
    roots = dict[str, None]()
    for root in (root for group in groups for root in group):
        if "://" not in root:
            roots[str(_folders("--root", [[Path(root)]])[0])] = None
        elif root.startswith(("http://", "https://")):
            raise UsageError(f"--root {root}: another service's datasets cannot be served; name a folder or a store")
        else:
            roots[root.rstrip("/")] = None
    return tuple(roots)


def _folders(flag: str, groups: Sequence[Sequence[Path]]) -> tuple[Path, ...]:
    folders = dict.fromkeys(path.expanduser().resolve() for group in groups for path in group)
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{flag} {folder}: not a folder; name an existing one")
    return tuple(folders)
