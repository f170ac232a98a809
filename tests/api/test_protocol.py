"""Connections: bounded in number, in what callers send beside bodies, and in how long they may stand still."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest
import uvicorn

from arwkv_api.http import protocol
from arwkv_api.http.protocol import HEAD_LIMIT_BYTES, BoundedHttp

Send = Callable[[dict[str, object]], Awaitable[None]]
App = Callable[..., Awaitable[None]]
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bytes]]


async def _app(scope: object, receive: object, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204})
    await send({"type": "http.response.body"})


def _with_server(talk: Talk, app: App = _app) -> bytes:
    """What `talk` returns, given a connection to a server that answers 204 by default."""

    async def run() -> bytes:
        config = uvicorn.Config(app, http=BoundedHttp, ws="none", lifespan="off", log_config=None)  # type: ignore[arg-type]  # an app is any callable
        config.load()
        state = uvicorn.server.ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: BoundedHttp(config, state, {}), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        answer = await asyncio.wait_for(talk(reader, writer), 20)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        server.close()
        await server.wait_closed()
        return answer

    return asyncio.run(run())


def test_head_that_never_ends_is_refused() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"GET / HTTP/1.1\r\nX: " + b"x" * HEAD_LIMIT_BYTES)
        return await reader.read()

    answer = _with_server(talk)
    assert b" 400 " in answer.split(b"\r\n")[0]
    assert b"65536 bytes" in answer


@pytest.mark.parametrize("beginning", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n"])
def test_head_that_stops_coming_is_given_up(beginning: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.05)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(beginning)
        return await reader.read()

    assert _with_server(talk) == b""


async def _patient_app(scope: object, receive: Callable[[], Awaitable[dict[str, object]]], send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    await _app(scope, receive, send)


CHUNKED = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"


@pytest.mark.parametrize(
    "endless", [b"0\r\n" + b"X: y\r\n", b"0\r\nX: ", b"1;"], ids=["trailers", "trailer", "extension"]
)
def test_what_follows_a_body_is_bounded(endless: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(CHUNKED + endless)
        sent = 0
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof() and sent < 64 * HEAD_LIMIT_BYTES:
                writer.write(b"X: y\r\n" * 1000 if endless.endswith(b"\n") else b"x" * 4000)
                await writer.drain()
                await asyncio.sleep(0)
                sent += 4000
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        assert sent < 64 * HEAD_LIMIT_BYTES
        return b""

    _with_server(talk, _patient_app)


def test_body_of_many_small_chunks_with_a_trailer_is_taken() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(CHUNKED + b"1\r\nx\r\n" * HEAD_LIMIT_BYTES + b"0\r\nX: y\r\n\r\n")
        return await reader.readuntil(b"\r\n")

    assert b" 204 " in _with_server(talk, _patient_app)


def test_caller_that_stops_reading_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SEND_TIMEOUT_S", 0.1)
    ended = asyncio.Event()

    async def endless(scope: object, receive: Callable[[], Awaitable[dict[str, object]]], send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        gone = asyncio.ensure_future(receive())
        while not gone.done() or gone.result()["type"] != "http.disconnect":
            gone = asyncio.ensure_future(receive()) if gone.done() else gone
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
            await asyncio.sleep(0)
        ended.set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport has it
        await asyncio.wait_for(ended.wait(), 20)
        return b""

    _with_server(talk, endless)


def test_connection_beyond_the_limit_is_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "connection_limit", lambda: 0)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        return await reader.read()

    answer = _with_server(talk)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"application/problem+json" in answer


def test_many_requests_on_one_connection_are_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        statuses = []
        for _ in range(5):
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (HEAD_LIMIT_BYTES // 2) + b"\r\n\r\n")
            statuses.append((await reader.readuntil(b"\r\n\r\n")).split(b" ")[1])
        return b",".join(statuses)

    assert _with_server(talk) == b"204,204,204,204,204"
