"""A dataset served by `api serve`: `http(s)://host/v1/datasets/NAME`."""

import functools
import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from arwkv_store.errors import CorruptShard, NotFound, TryAgain, UsageError
from arwkv_store.format.manifest import FileInfo
from arwkv_store.format.seal import MAX_DOCUMENT_BYTES
from arwkv_store.places.cache import FileCache
from arwkv_store.places.retry import Passing, with_retries

TIMEOUT_S = 30.0
PIECE_BYTES = 1 << 20
PAGE_SHARDS = 200
MAX_PAGE_BYTES = 256 << 20
_PASSING_STATUSES = {408, 425, 429, 500, 502, 503, 504}


class HttpSource:
    """Reads over HTTP; every answer is verified by hash after it arrives. The key is in ARWKV_API_KEY, if any."""

    def __init__(self, uri: str, cache: FileCache) -> None:
        self.uri = _quoted(uri.rstrip("/"))
        self._cache = cache

    def dataset_json(self) -> bytes:
        """The bytes of dataset.json. Raises NotFound."""
        return self._get("/manifest")

    def beside(self) -> dict[str, bytes]:
        """Nothing: a service hands out shards and manifests."""
        return {}

    def manifests(self) -> Iterator[tuple[int, bytes]]:
        """(part, bytes) of every committed part, in order, PAGE_SHARDS to a request.

        Raises TryAgain for a list that is shorter than the service says.
        """
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
                f"{self.uri}: {received} of {committed} committed shards were listed; the same command continues later"
            )

    def manifest(self, part: int) -> bytes:
        """The bytes of one manifest."""
        return self._get(f"/shards/{part}/manifest")

    def data_path(self, part: int, kind: str, file: FileInfo) -> Path:
        """The file's verified copy in the cache, fetched if need be."""
        path = f"/shards/{part}/data?file={kind}"
        return self._cache.fetch(file, lambda offset: self._pieces(path, offset), self.uri + path)

    def forget(self, file: FileInfo) -> bool:
        """Remove the copy in the cache."""
        self._cache.forget(file)
        return True

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
        """The error where something else answers there."""
        return UsageError(f"{self.uri}{path}: not the answer of a dataset service; check the URI")

    def _get(self, path: str, max_bytes: int = MAX_DOCUMENT_BYTES, *, method: str = "GET") -> bytes:
        def once() -> bytes:
            document = bytearray()
            for piece in self._pieces(path, 0, method=method):
                document += piece
                if len(document) > max_bytes:
                    raise UsageError(f"{self.uri}{path}: an answer above {max_bytes} bytes; check the URI")
            return bytes(document)

        return with_retries(once, self.uri + path)

    def post(self, path: str) -> dict[str, Any]:
        """The answer to an empty POST. Raises NotFound, UsageError, TryAgain."""
        return self._document(self._get(path, method="POST"), path)

    def _pieces(self, path: str, offset: int, *, method: str = "GET") -> Iterator[bytes]:
        request = urllib.request.Request(self.uri + path, headers=_headers(offset), method=method)
        try:
            with _opener().open(request, timeout=TIMEOUT_S) as answer:
                # A server that ignores Range sends everything again.
                skip = offset if answer.status == 200 else 0
                total = 0
                while piece := answer.read(PIECE_BYTES):
                    total += len(piece)
                    yield piece[skip:]
                    skip = max(0, skip - len(piece))
                promised = answer.headers.get("Content-Length")
                if promised is not None and total < int(promised):
                    raise Passing(f"answer ended after {total} of {promised} bytes")
        except urllib.error.HTTPError as error:
            raise _refusal(self.uri + path, error) from error
        except (OSError, http.client.HTTPException) as error:
            raise Passing(f"{type(error).__name__}: {error}") from error


def _quoted(uri: str) -> str:
    """The URI with everything in its path quoted that a request line cannot carry; what is quoted already stays so.

    A dataset's name may hold any character, `?` and `#` too, and nothing follows it.
    """
    scheme, _, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    stray = re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", path)
    return f"{scheme}://{host}{slash}{urllib.parse.quote(stray, safe='/%')}"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects; the key stays with the service it was given for."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and _origin(newurl) != _origin(req.full_url):
            following.remove_header("Authorization")
        return following


def _origin(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Redirects)


def _headers(offset: int) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    if key := os.environ.get("ARWKV_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    return headers


def _refusal(where: str, error: urllib.error.HTTPError) -> Exception:
    problem = _problem(error)
    detail = problem.get("detail") or problem.get("title") or error.reason
    if problem.get("type") == CorruptShard.problem_type:
        return CorruptShard(f"{where}: {detail}")
    if error.code in _PASSING_STATUSES:
        return Passing(f"HTTP {error.code} {detail}")
    if error.code == 404:
        return NotFound(f"{where}: not found there ({detail}); `GET /v1/datasets` lists what is served")
    if error.code in (401, 403):
        return UsageError(f"{where}: HTTP {error.code} {detail}; set ARWKV_API_KEY to a key of the service")
    return UsageError(f"{where}: HTTP {error.code} {detail}; check the URI")


def _problem(error: urllib.error.HTTPError) -> dict[str, Any]:
    """The answer's problem document (RFC 9457); empty where it has none."""
    try:
        with error:
            problem = json.loads(error.read(1 << 16))
    except (ValueError, OSError, http.client.HTTPException):
        return {}
    return problem if isinstance(problem, dict) else {}
