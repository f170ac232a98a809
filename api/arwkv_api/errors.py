"""The service's own errors, in addition to the store's; each has its HTTP status."""

from arwkv_store.errors import UsageError


class BadCursor(UsageError):
    """A cursor that is not from this list of this service."""

    http_status = 400


class Unauthorized(UsageError):
    """No key, or one that is not known."""

    http_status = 401


class Forbidden(UsageError):
    """A known key without the scope that the operation needs."""

    http_status = 403


class PreconditionFailed(UsageError):
    """An If-Match that does not name the present version."""

    http_status = 412


class PreconditionRequired(UsageError):
    """A change of something that others change, too, without the version that the caller has seen."""

    http_status = 428


class RangeNotSatisfiable(UsageError):
    """A Range outside the file, or more ranges than are allowed."""

    http_status = 416

    def __init__(self, message: str, size_bytes: int) -> None:
        super().__init__(message)
        self.size_bytes = size_bytes
