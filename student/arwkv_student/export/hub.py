"""A model repository on the Hub: files are uploaded one by one, become visible in one commit, and are compared."""

import hashlib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from arwkv_store.errors import ArwkvError, TryAgain, UsageError
from arwkv_store.format.file_hash import sha256_of_file

Result = TypeVar("Result")
NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Repository:
    """A model repository that this user may write."""

    name: str
    api: Any  # huggingface_hub's HfApi

    def push(self, files: Mapping[str, Path], student: str) -> dict[str, Any]:
        """Upload the files and commit them together; returns the repository's URL, the commit and what was uploaded.

        The same call again uploads only what the Hub does not hold yet, and makes no commit if nothing changed. Other
        files of the repository stay. Raises UsageError, TryAgain, ArwkvError if the Hub holds other bytes afterwards.
        """
        from huggingface_hub import CommitOperationAdd

        additions = [CommitOperationAdd(name, str(path)) for name, path in sorted(files.items())]
        for addition in additions:
            print(f"{self.name}: {addition.path_in_repo}", file=sys.stderr)
            # Alone, so that an interrupted upload keeps all files before it.
            self._attempt(partial(self.api.preupload_lfs_files, self.name, [addition], free_memory=False))
        commit = self._attempt(
            lambda: self.api.create_commit(self.name, additions, commit_message=f"Upload {student} with arwkv")
        )
        self._require_held(files)
        return {"url": f"{self.api.endpoint}/{self.name}", "commit": commit.oid}

    def _require_held(self, files: Mapping[str, Path]) -> None:
        """Compare what the Hub holds with the files here."""
        found = {one.path: one for one in self._attempt(lambda: self.api.get_paths_info(self.name, list(files)))}
        for name, path in files.items():
            held = found.get(name)
            if held is not None and held.lfs is not None:
                there, here = held.lfs.sha256, sha256_of_file(path)
            else:
                there, here = getattr(held, "blob_id", "missing"), _git_hash(path)
            if there != here:
                raise ArwkvError(f"{self.name}: {name} is {there} there and {here} here; run the same command again")

    def _attempt(self, request: Callable[[], Result]) -> Result:
        return attempt(request, self.name)


def _git_hash(path: Path) -> str:
    """As git names a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def open_repository(name: str, *, private: bool) -> Repository:
    """The repository OWNER/NAME, created if there is none. Raises UsageError for a name or a permission, TryAgain."""
    if not NAME.fullmatch(name):
        raise UsageError(f"--push {name}: write OWNER/NAME, such as your-name/student-7b")
    from huggingface_hub import HfApi

    api = HfApi(library_name="arwkv")
    attempt(lambda: api.create_repo(name, private=private or None, exist_ok=True), name)
    return Repository(name, api)


def attempt(request: Callable[[], Result], name: str) -> Result:
    """The request's result; errors of the Hub and of the network say what to do."""
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    try:
        return request()
    except HFValidationError as error:
        raise UsageError(f"--push {name}: {error}") from error
    except OfflineModeIsEnabled as error:
        raise UsageError(f"--push {name}: HF_HUB_OFFLINE is set; unset it for this command") from error
    except Exception as error:
        fault = _fault(error, name)
        if fault is None:
            raise
        raise fault from error


def _fault(error: Exception, name: str) -> ArwkvError | None:
    """What the user has to do about an error of the Hub or the network; None for any other error."""
    from huggingface_hub.errors import HfHubHTTPError

    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    said = f"--push {name}: {' '.join(str(error).split())}"
    answered = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    status = 0 if answered is None else answered.response.status_code
    # An upload that was begun had the permission: its address has expired.
    if answered is error and status in (401, 403, 404):
        return UsageError(f"{said}; log in with a token that may write there (hf auth login, or HF_TOKEN)")
    if answered is error and 400 <= status < 500 and status not in (408, 412, 429):
        return UsageError(said)
    lost = any("TransportError" in {kind.__name__ for kind in type(cause).__mro__} for cause in causes)
    if answered is not None or lost or isinstance(error, ConnectionError | TimeoutError):
        return TryAgain(f"{said}; run the same command again: uploaded files are not uploaded twice")
    return None
