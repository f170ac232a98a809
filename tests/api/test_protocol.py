"""Heads of requests: bounded in size and in time, without a limit on what comes after."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvicorn

from arwkv_api import protocol
from arwkv_api.protocol import HEAD_LIMIT_BYTES, BoundedHttp

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bytes]]


async def _app(scope: object, receive: object, send: Callable[[dict[str, object]], Awaitable[None]]) -> None:
    await send({"type": "http.response.start", "status": 204})
    await send({"type": "http.response.body"})


def _with_server(talk: Talk) -> bytes:
    """What `talk` returns, given a connection to a server that answers 204."""

    async def run() -> bytes:
        config = uvicorn.Config(_app, http=BoundedHttp, ws="none", lifespan="off", log_config=None)  # type: ignore[arg-type]  # an app is any callable
        config.load()
        state = uvicorn.server.ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: BoundedHttp(config, state, {}), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        answer = await asyncio.wait_for(talk(reader, writer), 20)
        writer.close()
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


@pytest.mark.parametrize("beginning", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_head_that_stops_coming_is_given_up(beginning: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.05)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(beginning)
        return await reader.read()

    assert _with_server(talk) == b""


def test_many_requests_on_one_connection_are_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        statuses = []
        for _ in range(5):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * (HEAD_LIMIT_BYTES // 2) + b"\r\n\r\n")
            statuses.append((await reader.readuntil(b"\r\n\r\n")).split(b" ")[1])
        return b",".join(statuses)

    assert _with_server(talk) == b"204,204,204,204,204"
