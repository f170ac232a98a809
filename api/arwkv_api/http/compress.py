"""JSON and the page's files get an ETag, and compression if the caller accepts it; shards are not changed."""

import gzip
import hashlib

import zstandard
from anyio import to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arwkv_api.http.ranges import matches
from arwkv_api.kept import Kept

COMPRESSIBLE = ("application/json", "application/problem+json", "text/")
STREAM = "text/event-stream"
SMALLEST_BYTES = 600
# Above this size, compression would delay other requests by more than about a millisecond.
INLINE_BYTES = 64 << 10
KEPT_BYTES = 8 << 20


class Compact:
    """ASGI layer over answers that are complete before they are sent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._compressed = Kept[bytes](KEPT_BYTES, len)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, send, self._compressed)
        await self._app(scope, receive, answer.take)


class _Answer:
    """Collects the body of a response of a kind that this layer handles."""

    def __init__(self, scope: Scope, send: Send, compressed: Kept[bytes]) -> None:
        self._request, self._method, self._send = Headers(scope=scope), scope["method"], send
        self._compressed = compressed
        self._start: Message | None = None
        self._body = bytearray()

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = Headers(raw=message["headers"]).get("content-type", "")
            if (
                kind.startswith(COMPRESSIBLE)
                and not kind.startswith(STREAM)
                and message["status"] not in (206, 304)
                and self._method != "HEAD"
            ):
                self._start = message
                return
        elif self._start is not None:
            self._body += message.get("body", b"")
            if message.get("more_body", False):
                return
            await self._finish(self._start)
            return
        await self._send(message)

    async def _finish(self, start: Message) -> None:
        headers, body = MutableHeaders(raw=start["headers"]), bytes(self._body)
        headers.add_vary_header("Accept-Encoding")
        if start["status"] == 200 and self._method == "GET":
            etag = headers.setdefault("ETag", f'W/"{hashlib.blake2b(body, digest_size=16).hexdigest()}"')
            headers.setdefault("Cache-Control", "no-cache")
            if matches(self._request.get("if-none-match", ""), etag):
                start["status"], body = 304, b""
                del headers["content-length"]
        encoding = accepted_encoding(self._request.get("accept-encoding", ""))
        if encoding is not None and len(body) >= SMALLEST_BYTES and "content-encoding" not in headers:
            body = await self._compress(body, encoding)
            headers["Content-Encoding"] = encoding
            headers["Content-Length"] = str(len(body))
        start["headers"] = headers.raw
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})

    async def _compress(self, body: bytes, encoding: str) -> bytes:
        """The body in this encoding; repeated bodies come from a cache."""

        def compressed() -> bytes:
            key = (encoding, hashlib.blake2b(body, digest_size=16).digest())
            return self._compressed.of(key, lambda: _COMPRESSORS[encoding](body))

        return compressed() if len(body) <= INLINE_BYTES else await to_thread.run_sync(compressed)


def accepted_encoding(header: str) -> str | None:
    """The best of `zstd` and `gzip` that an Accept-Encoding header names with a weight above 0."""
    admitted = set()
    for item in header.lower().split(","):
        name, _, parameters = item.partition(";")
        if parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
            admitted.add(name.strip())
    return next((name for name in _COMPRESSORS if name in admitted), None)


def _zstd(body: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(body)


def _gzip(body: bytes) -> bytes:
    return gzip.compress(body, compresslevel=5, mtime=0)


_COMPRESSORS = {"zstd": _zstd, "gzip": _gzip}
