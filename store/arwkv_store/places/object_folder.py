"""A folder in an object store or on the Hub, through fsspec: `s3://bucket/path`, `hf://datasets/user/name`, …"""

import copy
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import fsspec

from arwkv_store.errors import NotFound, UsageError
from arwkv_store.format.seal import MAX_DOCUMENT_BYTES
from arwkv_store.places.retry import Passing, with_retries

Result = TypeVar("Result")

LIBRARIES = {
    *("aiobotocore", "aiohttp", "botocore", "httpcore", "httpx", "httpx2", "huggingface_hub"),
    *("adlfs", "azure", "gcsfs", "google", "requests", "urllib3"),
}
"""Packages below the filesystems; some of their errors are not OSErrors."""
_CREDENTIALS = re.compile("Credential|Token|Auth|Profile")


class ObjectFolder:
    """Its filesystem: temporary errors are retried, other errors say what to do.

    Credentials and endpoints come from where each filesystem usually takes them. May be pickled and forked.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        # A filesystem object holds connections and threads: it belongs to the process that made it.
        self._filesystem: Any = None
        self._process_id = 0

    def within(self, name: str) -> "ObjectFolder":
        """A folder in this one, over the same connections."""
        self.filesystem()
        inner = copy.copy(self)
        inner.uri = f"{self.uri}/{name}"
        return inner

    @property
    def lists_from_a_name(self) -> bool:
        """Whether a listing may begin behind a name, as in S3."""
        return "s3" in self.filesystem().protocol

    def path(self, name: str) -> str:
        """The filesystem's own path of a name in this folder."""
        root: str = self.filesystem()._strip_protocol(self.uri)
        return f"{root}/{name}"

    def read(self, name: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
        """A whole object, truncated to one byte more than `max_bytes`. Raises NotFound, UsageError, TryAgain."""
        return self.attempt(lambda: self.piece(name, 0, max_bytes + 1), name)

    def piece(self, name: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of an object; raises the filesystem's own errors."""
        content: bytes = self.filesystem().cat_file(self.path(name), start=start, end=end)
        return content

    def cat_ranges(self, names: Sequence[str], starts: Sequence[int], ends: Sequence[int]) -> list[bytes | Exception]:
        """A range of each object, all requested at once, or its error."""
        # Of fsspec's functions to read many files, only this one takes a limit and does not treat a path as a pattern.
        paths = [self.path(name) for name in names]
        answers: list[bytes | Exception] = self.filesystem().cat_ranges(
            paths, list(starts), list(ends), on_error="return"
        )
        return answers

    def ranges(self, name: str, starts: Sequence[int], ends: Sequence[int]) -> Iterator[bytes]:
        """Ranges of one object, requested at once, up to the first that fails. Raises as `once` does."""
        for answer in self.once(partial(self.cat_ranges, [name] * len(starts), starts, ends), name):
            yield self.once(partial(_content, answer), name)

    def exists(self, name: str) -> bool:
        """Whether the object exists now; raises the filesystem's own errors."""
        self.filesystem().invalidate_cache()
        return bool(self.filesystem().exists(self.path(name)))

    def size_bytes(self, name: str) -> int:
        """The object's size now; raises the filesystem's own errors."""
        self.filesystem().invalidate_cache()
        return int(self.filesystem().size(self.path(name)))

    def attempt(self, operation: Callable[[], Result], name: str) -> Result:
        """The operation's result; temporary failures are retried. Raises NotFound, UsageError, TryAgain."""
        return with_retries(lambda: self.once(operation, name), f"{self.uri}/{name}")

    def once(self, operation: Callable[[], Result], name: str) -> Result:
        """The operation's result. Raises Passing for temporary failures, NotFound or UsageError for others."""
        try:
            return operation()
        except FileExistsError:
            raise
        except FileNotFoundError as error:
            raise NotFound(f"{self.uri}/{name}: not found; name a dataset's URI") from error
        except PermissionError as error:
            raise UsageError(f"{self.uri}/{name}: {error}; check the credentials") from error
        except OSError as error:
            raise _library_fault(f"{self.uri}/{name}", error) from error
        except Exception as error:
            if not _library_roots(error) & LIBRARIES:
                raise
            raise _library_fault(f"{self.uri}/{name}", error) from error

    def filesystem(self) -> Any:
        """This process's filesystem. Raises UsageError for an unknown scheme."""
        if self._process_id != os.getpid():
            scheme = self.uri.split("://", 1)[0]
            try:
                self._filesystem = fsspec.filesystem(scheme, skip_instance_cache=True)
            except (ValueError, ImportError) as error:
                raise UsageError(f'{self.uri}: {error}; for s3:// install "arwkv[s3]"') from error
            self._process_id = os.getpid()
        return self._filesystem

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_filesystem": None, "_process_id": 0}


def _content(answer: bytes | Exception) -> bytes:
    if isinstance(answer, Exception):
        raise answer
    return answer


def _library_roots(error: Exception) -> set[str]:
    return {kind.__module__.split(".", 1)[0] for kind in type(error).__mro__}


def _library_fault(where: str, error: Exception) -> Exception:
    """Our error for a library's error: missing objects and credentials are permanent, the rest may be temporary."""
    name, text = type(error).__name__, " ".join(str(error).split())
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 404 or "NotFound" in name:
        return NotFound(f"{where}: {text}; name a dataset's URI")
    if status in (401, 403) or _CREDENTIALS.search(name):
        return UsageError(f"{where}: {name}: {text}; check the credentials of this filesystem")
    return Passing(f"{name}: {text}")
