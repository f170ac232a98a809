"""Sending a shard's file: whole, one range or several, from a disk or from the object store that has it."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence

from anyio import to_thread
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from arwkv_api.http.ranges import ByteRange
from arwkv_api.roots.place import Content


class FileResponse(Response):
    """Sends ranges of an open file, which it closes; memory stays at one chunk per transfer."""

    def __init__(
        self, content: Content, ranges: Sequence[ByteRange] | None, media_type: str, headers: Mapping[str, str]
    ) -> None:
        super().__init__(status_code=200 if ranges is None else 206, headers=dict(headers), media_type=media_type)
        self._content, self._size_bytes = content, content.size_bytes
        size_bytes = content.size_bytes
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
            self._content.close()

    async def _send_body(self, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            for piece in self._pieces:
                async for chunk in _chunks(self._content, piece):
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


async def _chunks(content: Content, piece: bytes | ByteRange) -> AsyncIterator[bytes | bytearray]:
    if isinstance(piece, bytes):
        yield piece
        return
    for start in range(piece.start, piece.stop, content.piece_bytes):
        size_bytes = min(content.piece_bytes, piece.stop - start)
        at_hand = content.at_hand(start, size_bytes)
        yield await to_thread.run_sync(content.read, start, size_bytes) if at_hand is None else at_hand
