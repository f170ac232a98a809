"""Limits of size and time for connections: for heads and trailers that they send, and for answers that they read."""

import asyncio
import json
import resource

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Lines before a request's body, or after a chunked one.
HEAD_LIMIT_BYTES = 64 << 10
HEAD_TIMEOUT_S = 30.0
# A caller that has not read the waiting data by then, at most about 200 kB, is disconnected.
SEND_TIMEOUT_S = 60.0
# A connection takes two descriptors, its own and that of the file; these many are reserved for everything else.
OTHER_DESCRIPTORS = 256
MOST_DESCRIPTORS = 1 << 16


def raise_descriptor_limit() -> None:
    """Raise the limit of descriptors as far as the system allows, for this process and its children."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def connection_limit() -> int:
    """Connections that one process serves at once, so that it never runs out of descriptors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else min(soft, MOST_DESCRIPTORS)
    return max((descriptors - OTHER_DESCRIPTORS) // 2, 1)


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's fast protocol with limits: by itself it accepts heads of any size and waits for callers without end."""

    _loose_bytes = 0
    _in_head = True
    _came_on = False
    _head_deadline: asyncio.TimerHandle | None = None
    _send_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base declares it
        super().connection_made(transport)
        if len(self.connections) > connection_limit():
            transport.write(_BUSY)
            transport.close()
            return
        self._head_deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._came_on = False
        super().data_received(data)
        self._loose_bytes = 0 if self._came_on else self._loose_bytes + len(data)
        if self._loose_bytes > HEAD_LIMIT_BYTES and not self.transport.is_closing():
            if self._in_head:
                self.send_400_response(f"The request's head has more than {HEAD_LIMIT_BYTES} bytes.")
            else:
                self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        if self._head_deadline is None:
            self._head_deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # no caller needs trailers
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._came_on = False, True
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._came_on = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._came_on = True
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._send_deadline is None:
            self._send_deadline = self.loop.call_later(SEND_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        if self._send_deadline is not None:
            self._send_deadline.cancel()
            self._send_deadline = None
        super().resume_writing()

    def shutdown(self) -> None:
        """As uvicorn does; an answer that follows events, and so never ends by itself, is ended."""
        super().shutdown()
        if self.cycle is not None and self.cycle.scope.get("follows"):
            self.transport.close()

    def _stop_waiting(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _give_up(self) -> None:
        self._head_deadline = None
        self.transport.close()


_REASON = {
    "type": "about:blank",
    "title": "Service Unavailable",
    "status": 503,
    "detail": "as many connections are open as this process may have; try again",
    "instance": "/",
}
_BODY = json.dumps(_REASON).encode()
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 1\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(_BODY)
) + _BODY
