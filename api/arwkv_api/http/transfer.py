"""Sending a shard's file: whole, one range or several, straight from the page cache if possible."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence

from anyio import to_thread
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from arwkv_api.http.ranges import ByteRange

CHUNK_BYTES = 128 << 10


class FileResponse(Response):
    """Sends ranges of an open descriptor, which it closes; memory stays at one chunk per transfer."""

    def __init__(
        self, fd: int, size_bytes: int, ranges: Sequence[ByteRange] | None, media_type: str, headers: Mapping[str, str]
    ) -> None:
        super().__init__(status_code=200 if ranges is None else 206, headers=dict(headers), media_type=media_type)
        self._fd, self._size_bytes = fd, size_bytes
        self._pieces: list[bytes | ByteRange] = [ByteRange(0, size_bytes)]
        if ranges is not None and len(ranges) == 1:
            self.headers["Content-Range"] = ranges[0].content_range(size_bytes)
            self._pieces = [ranges[0]]
        elif ranges is not None:
            self._pieces = self._multipart(ranges, media_type)
        length = sum(len(piece) if isinstance(piece, bytes) else piece.size_bytes for piece in self._pieces)
        self.headers["Content-Length"] = str(length)

    def _multipart(self, ranges: Sequence[ByteRange], media_type: str) -> list[bytes | ByteRange]:
        boundary = secrets.token_hex(16)
        self.headers["Content-Type"] = f"multipart/byteranges; boundary={boundary}"
        pieces: list[bytes | ByteRange] = []
        for piece in ranges:
            head = (
                f"--{boundary}\r\nContent-Type: {media_type}\r\nContent-Range: {piece.content_range(self._size_bytes)}"
            )
            pieces += [f"{head}\r\n\r\n".encode(), piece, b"\r\n"]
        return [*pieces, f"--{boundary}--\r\n".encode()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] == "HEAD":
                await send({"type": "http.response.body", "body": b""})
            else:
                await self._send_body(receive, send)
        finally:
            os.close(self._fd)

    async def _send_body(self, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            for piece in self._pieces:
                async for chunk in _chunks(self._fd, piece):
                    if gone.done():
                        return
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()


async def _disconnected(receive: Receive) -> None:
    # The body of a GET, which should have none, may time out: then the caller is gone.
    with contextlib.suppress(HTTPException):
        while (await receive())["type"] != "http.disconnect":
            pass


async def _chunks(fd: int, piece: bytes | ByteRange) -> AsyncIterator[bytes | bytearray]:
    if isinstance(piece, bytes):
        yield piece
        return
    for start in range(piece.start, piece.stop, CHUNK_BYTES):
        size_bytes = min(CHUNK_BYTES, piece.stop - start)
        cached = _read_cached(fd, start, size_bytes)
        yield await to_thread.run_sync(_read, fd, start, size_bytes) if cached is None else cached


def _read_cached(fd: int, start: int, size_bytes: int) -> bytearray | None:
    """The bytes if all are in the page cache, without waiting for the disk; else None."""
    buffer = bytearray(size_bytes)
    try:
        got = os.preadv(fd, [buffer], start, os.RWF_NOWAIT)
    except OSError:
        return None
    return buffer if got == size_bytes else None


def _read(fd: int, start: int, size_bytes: int) -> bytes:
    parts: list[bytes] = []
    while size_bytes:
        part = os.pread(fd, size_bytes, start)
        if not part:
            raise OSError(f"file ended {size_bytes} bytes early, at byte {start}; it was cut while it was sent")
        parts.append(part)
        start, size_bytes = start + len(part), size_bytes - len(part)
    return b"".join(parts)
