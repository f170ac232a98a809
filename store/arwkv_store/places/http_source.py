"""A dataset served by `api serve`: `http(s)://host/v1/datasets/NAME`."""

import contextlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from arwkv_store.errors import NotFound, TryAgain, UsageError
from arwkv_store.format.layout import CORPUS_FILE, NOTES_FILE
from arwkv_store.format.manifest import FileInfo
from arwkv_store.format.notes import Notes
from arwkv_store.format.seal import MAX_DOCUMENT_BYTES
from arwkv_store.places.cache import AHEAD_SHARE, FileCache, RangedFile, Stream, require_size
from arwkv_store.places.http_connection import answer_pieces
from arwkv_store.places.retry import with_retries

PAGE_SHARDS = 200
MAX_PAGE_BYTES = 256 << 20


class HttpSource:
    """Reads over HTTP; every answer is verified by hash after it arrives. The key is in ARWKV_API_KEY, if any."""

    def __init__(self, uri: str, cache: FileCache) -> None:
        self.uri = _quoted(uri.rstrip("/"))
        self._cache = cache

    def dataset_json(self) -> bytes:
        """The bytes of dataset.json. Raises NotFound."""
        return self._get("/manifest")

    def beside(self) -> dict[str, bytes]:
        """The producer's report of the corpus, and people's notes; a service serves no other file but shards and
        manifests."""
        found = {}
        with contextlib.suppress(NotFound):
            report = self._get_json("/corpus").get("report")
            if report is not None:
                found[CORPUS_FILE] = json.dumps(report, indent=2).encode() + b"\n"
        with contextlib.suppress(UsageError):  # a service of an earlier release, or notes that nobody can read
            notes = Notes.from_bytes(self._get("/notes"), f"{self.uri}/notes")
            if notes.changed_at_s is not None:
                found[NOTES_FILE] = notes.to_bytes()
        return found

    def summary(self) -> bytes:
        """None: the service lists manifests, many in an answer."""
        return b""

    def present(self, known: int) -> None:
        """None: manifests come with the list."""

    def manifests(self, parts: Sequence[int] | None = None) -> Iterator[tuple[int, bytes]]:
        """(part, bytes) of every committed part, in order, PAGE_SHARDS to a request.

        Raises TryAgain if the list is shorter than the service announced.
        """
        if parts is not None:
            yield from ((part, self.manifest(part)) for part in parts)
            return
        cursor: str | None = None
        committed, received = None, 0
        while True:
            query = {"limit": str(PAGE_SHARDS), "include": "manifest", **({"cursor": cursor} if cursor else {})}
            page = self._get_json(f"/shards?{urllib.parse.urlencode(query)}")
            try:
                found = [(int(item["part"]), str(item["manifest"]).encode()) for item in page["items"]]
                committed = int(page["committed"]) if committed is None else committed
            except (KeyError, TypeError, ValueError) as error:
                raise self.no_service("/shards") from error
            yield from found
            received += len(found)
            cursor = page.get("next_cursor")
            if not cursor:
                break
        if received < committed:
            raise TryAgain(
                f"{self.uri}: {received} of {committed} committed shards were listed; run the same command again later"
            )

    def manifest(self, part: int) -> bytes:
        """The bytes of one manifest."""
        return self._get(f"/shards/{part}/manifest")

    def data_path(self, part: int, kind: str, file: FileInfo) -> Path:
        """The file's verified copy in the cache, fetched if need be."""
        return self._cache.fetch(file, *self._stream(part, kind, file))

    def data_ranges(self, part: int, kind: str, file: FileInfo) -> RangedFile | None:
        """A copy in the cache that is fetched range by range."""
        return self._cache.ranged(file, *self._stream(part, kind, file))

    def _stream(self, part: int, kind: str, file: FileInfo) -> tuple[Stream, str]:
        where = f"{self.uri}/shards/{part}/data?file={kind}"
        return partial(answer_pieces, "GET", where, whole=partial(require_size, where, file)), where

    def forget(self, file: FileInfo) -> bool:
        """Remove the copy in the cache."""
        self._cache.forget(file)
        return True

    def ahead(self, stop: threading.Event, share: int = AHEAD_SHARE) -> "HttpSource":
        """A source whose cache stops fetching when it is told to."""
        return HttpSource(self.uri, self._cache.ahead(stop, share))

    def _get_json(self, path: str) -> dict[str, Any]:
        return self._document(self._get(path, MAX_PAGE_BYTES), path)

    def _document(self, raw: bytes, path: str) -> dict[str, Any]:
        try:
            document = json.loads(raw)
        except ValueError as error:
            raise self.no_service(path) from error
        if not isinstance(document, dict):
            raise self.no_service(path)
        return document

    def no_service(self, path: str) -> UsageError:
        """The error if another service answers."""
        return UsageError(f"{self.uri}{path}: the answer is not from a dataset service; check the URI")

    def _get(self, path: str, max_bytes: int = MAX_DOCUMENT_BYTES, *, method: str = "GET") -> bytes:
        def once() -> bytes:
            document = bytearray()
            for piece in answer_pieces(method, self.uri + path):
                document += piece
                if len(document) > max_bytes:
                    raise UsageError(f"{self.uri}{path}: the answer is longer than {max_bytes} bytes; check the URI")
            return bytes(document)

        return with_retries(once, self.uri + path)

    def dataset(self) -> dict[str, Any]:
        """The service's description of the dataset: its `state`, figures and identity."""
        return self._get_json("")

    def post(self, path: str) -> dict[str, Any]:
        """The answer to an empty POST. Raises NotFound, UsageError, TryAgain."""
        return self._document(self._get(path, method="POST"), path)


def _quoted(uri: str) -> str:
    """The URI with a quoted path; characters that are quoted already do not change.

    A dataset's name may hold any character, also `?` and `#`, and is the end of the URI.
    """
    scheme, _, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    stray = re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", path)
    return f"{scheme}://{host}{slash}{urllib.parse.quote(stray, safe='/%')}"
