"""Lists everything below a folder in an object store, in the order of names, one request for each 1,000 objects."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from arwkv_store.places.object_folder import ObjectFolder

# What filesystems call an object's content, its version or its time, the best first.
_MARKS = (
    "ETag",
    "etag",
    "blob_id",
    "md5Hash",
    "md5",
    "generation",
    "LastModified",
    "last_modified",
    "mtime",
    "created",
)
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "last_commit", "created")


@dataclass(frozen=True, slots=True)
class Listed:
    """An object: its name below the folder, and a `mark` that changes when its content does."""

    name: str
    size_bytes: int
    modified_s: float
    mark: str


def listed(folder: ObjectFolder, prefix: str = "", after: str = "") -> Iterator[Listed]:
    """Objects whose name below `folder` begins with `prefix`, at any depth, sorted by name; those up to the name
    `after` are left out, and not requested from S3.

    A folder that is not there has none. Raises UsageError, TryAgain.
    """
    pages = _s3_pages if folder.lists_from_a_name else _found
    root = folder.path("")
    for info in pages(folder, root + prefix, root + after if after else ""):
        name = info["name"].removeprefix(root)
        if name > after and not name.endswith("/"):
            yield Listed(name, int(info["size"]), _modified_s(info), _mark(info))


def _s3_pages(folder: ObjectFolder, prefix: str, after: str) -> Iterator[dict[str, Any]]:
    bucket, _, key = prefix.partition("/")
    request = {"Bucket": bucket, "Prefix": key}
    if after:
        request["StartAfter"] = after.partition("/")[2]
    while True:
        ask = partial(folder.filesystem().call_s3, "list_objects_v2", **request)
        page = folder.attempt(ask, key)
        for found in page.get("Contents", ()):
            yield {**found, "name": f"{bucket}/{found['Key']}", "size": found["Size"]}
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def _found(folder: ObjectFolder, prefix: str, _after: str) -> Iterator[dict[str, Any]]:
    root = prefix.rpartition("/")[0]

    def find() -> dict[str, dict[str, Any]]:
        folder.filesystem().invalidate_cache()
        found: dict[str, dict[str, Any]] = folder.filesystem().find(root, detail=True)
        return found

    for name, info in sorted(folder.attempt(find, "").items()):
        if name.startswith(prefix):
            yield {**info, "name": name}


def _mark(info: dict[str, Any]) -> str:
    return next((str(info[key]) for key in _MARKS if info.get(key) is not None), "")


def _modified_s(info: dict[str, Any]) -> float:
    found = next((info[key] for key in _TIMES if info.get(key) is not None), 0.0)
    if isinstance(found, str):
        try:
            found = datetime.fromisoformat(found)
        except ValueError:
            return 0.0
    if isinstance(found, datetime):
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    return float(found) if isinstance(found, int | float) else 0.0
