"""A folder in an object store or on the Hub, through fsspec: `s3://bucket/path`, `hf://datasets/user/name`, …"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec

from arwkv_store.errors import NotFound, UsageError
from arwkv_store.retry import Passing, with_retries
from arwkv_store.seal import MAX_DOCUMENT_BYTES

Result = TypeVar("Result")


class ObjectFolder:
    """Its filesystem, whose errors are told apart: what may pass is tried again, what will not says what to do.

    Credentials and endpoints come from where each filesystem usually takes them. May be pickled and forked.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        # A filesystem object holds connections and threads: it belongs to the process that made it.
        self._filesystem: Any = None
        self._process_id = 0

    def path(self, name: str) -> str:
        """The filesystem's own path of a name in this folder."""
        root: str = self.filesystem()._strip_protocol(self.uri)
        return f"{root}/{name}"

    def read(self, name: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
        """A whole object, cut to one byte more than `max_bytes`. Raises NotFound, UsageError, TryAgain."""
        return self.attempt(lambda: self.piece(name, 0, max_bytes + 1), name)

    def piece(self, name: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of an object; raises the filesystem's own errors."""
        content: bytes = self.filesystem().cat_file(self.path(name), start=start, end=end)
        return content

    def attempt(self, operation: Callable[[], Result], name: str) -> Result:
        """The operation's result, tried again while its failure may pass. Raises NotFound, UsageError, TryAgain."""
        return with_retries(lambda: self.once(operation, name), f"{self.uri}/{name}")

    def once(self, operation: Callable[[], Result], name: str) -> Result:
        """The operation's result. Raises Passing for what may pass, NotFound or UsageError for what will not."""
        try:
            return operation()
        except FileExistsError:
            raise
        except FileNotFoundError as error:
            raise NotFound(f"{self.uri}/{name}: not there; name a dataset's URI") from error
        except PermissionError as error:
            raise UsageError(f"{self.uri}/{name}: {error}; check the credentials") from error
        except (OSError, TimeoutError) as error:
            raise Passing(f"{type(error).__name__}: {error}") from error

    def filesystem(self) -> Any:
        """This process's filesystem. Raises UsageError for a scheme nobody reads."""
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
