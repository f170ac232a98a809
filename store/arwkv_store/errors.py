"""The errors a user can meet: each says what, where, the value and the way out, and owns its exit code."""

from typing import ClassVar


class ArwkvError(Exception):
    """Base of every expected failure. The message is one line, complete in itself."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    # How the service's answers name this error where its status does not say enough (RFC 9457, section 3.1.1).
    problem_type: ClassVar[str] = "about:blank"


class UsageError(ArwkvError):
    """What was asked for cannot be done: a bad value, a missing file, a model that does not fit."""

    exit_code = 2
    http_status = 422


class NotFound(UsageError):
    """The named dataset, shard, sample or model does not exist."""

    http_status = 404


class ConfigurationDiffers(UsageError):
    """A dataset or run exists with another configuration; the message lists each differing field."""

    http_status = 409


class UnsupportedVersion(UsageError):
    """A shard or dataset of a format version this release does not read; the message names both versions."""

    http_status = 409


class CorruptShard(ArwkvError):
    """Bytes on disk are not the bytes that were committed; the message names file, batch and remedy."""

    exit_code = 3
    http_status = 409
    problem_type = "urn:arwkv:corrupt-shard"


class TryAgain(ArwkvError):
    """A passing fault (a server that is away, a full disk, a stop request): the same command continues later."""

    exit_code = 75
    http_status = 503
