"""The errors that users see: each gives the problem, the place, the value and what to do, and has its exit code."""

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar


class ArwkvError(Exception):
    """Base of every expected failure. The message is one line, complete in itself."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    # The `type` of this error in the service's answers, if the status is not enough (RFC 9457, section 3.1.1).
    problem_type: ClassVar[str] = "about:blank"


class UsageError(ArwkvError):
    """The request cannot be fulfilled: a bad value, a missing file, a model that does not fit."""

    exit_code = 2
    http_status = 422


class NotFound(UsageError):
    """The named dataset, shard, sample or model does not exist."""

    http_status = 404


class ConfigurationDiffers(UsageError):
    """A dataset or run exists with another configuration; the message lists each differing field."""

    http_status = 409

    @classmethod
    def unless_same(cls, where: Path, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        """Raise it, naming each setting whose JSON value in the file `where` is not the one asked for."""
        differences = [
            f"{name}: {json.dumps(there.get(name))} there, {json.dumps(asked.get(name))} asked"
            for name in sorted(there.keys() | asked.keys())
            if there.get(name) != asked.get(name)
        ]
        if differences:
            raise cls(f"{where}: {'; '.join(differences)}; choose another --out, or use the same settings")


class UnsupportedVersion(UsageError):
    """A shard or dataset of a format version this release does not read; the message names both versions."""

    http_status = 409


class CorruptShard(ArwkvError):
    """Bytes on disk are not the bytes that were committed; the message names file, batch and remedy."""

    exit_code = 3
    http_status = 409
    problem_type = "urn:arwkv:corrupt-shard"


class StorageFault(ArwkvError):
    """The disk or mount fails in a way that does not end by itself: it needs repair."""


class TryAgain(ArwkvError):
    """A temporary fault (a server that is away, a full disk, a stop request): run the same command again later."""

    exit_code = 75
    http_status = 503


_PERMISSION = "this user may not do this there: name another folder, or give this user the permission"
_LOCKS = (
    "this file system has no file locks, by which writers tell each other apart: mount it with locks (NFS: without "
    "nolock; Lustre: with flock), or write to a local folder and carry it over with store copy"
)
_FULL = "nothing was committed: free disk space, then run the same command again"
_FAULTS: dict[int, tuple[type[ArwkvError], str]] = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), (UsageError, _PERMISSION)),
    errno.EROFS: (UsageError, "it is mounted read-only: name another folder, or mount it for writing"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), (NotFound, "name a folder that is there")),
    **dict.fromkeys((errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS), (StorageFault, _LOCKS)),
    errno.EIO: (StorageFault, "the disk fails: look at the kernel's log, and move the dataset to another disk"),
    errno.ESTALE: (
        StorageFault,
        "the server no longer knows this file: run the same command again; where that does not help, mount it again",
    ),
    errno.EFBIG: (StorageFault, "nothing was committed: raise ulimit -f, or name a file system that takes such files"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), (TryAgain, _FULL)),
    **dict.fromkeys(
        (errno.EMFILE, errno.ENFILE), (TryAgain, "too many files are open: raise ulimit -n, then run it again")
    ),
    **dict.fromkeys(
        (errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EINTR, errno.EAGAIN, errno.EBUSY),
        (TryAgain, "nothing was committed: run the same command again"),
    ),
}


def storage_error(what: str, error: OSError) -> ArwkvError:
    """An OSError as one of our errors, which names the fault and what to do.

    Only faults that end by waiting, or by freeing space, are TryAgain.
    """
    unknown = (StorageFault, "nothing was committed: see to the disk or the mount, then run the same command again")
    kind, remedy = _FAULTS.get(error.errno or 0, unknown)
    file = f" ({error.filename})" if error.filename and str(error.filename) not in what else ""
    return kind(f"{what}: {error.strerror or error}{file}; {remedy}")
