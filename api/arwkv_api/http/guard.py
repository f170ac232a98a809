"""Limits for one caller: size and time of bodies, rate of requests."""

import asyncio
import time
from collections import OrderedDict

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arwkv_api.http.problems import problem_response

BODY_TIMEOUT_S = 30.0
BURST_S = 10.0
# Number of callers in memory; the one that was silent longest is evicted first.
CALLERS = 10_000


class Guard:
    """ASGI layer that answers 413, 408 and 429."""

    def __init__(self, app: ASGIApp, request_limit_bytes: int, requests_per_s: float) -> None:
        self._app, self._limit_bytes = app, request_limit_bytes
        self._rate = _Rate(requests_per_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if not self._rate.admits(_caller(scope)):
            await self._refuse(429, "more requests than --requests-per-s admits; slow down", scope, receive, send)
            return
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._limit_bytes:
            await self._refuse(413, self._too_large(declared.decode("latin-1")[:20]), scope, receive, send)
            return
        await self._app(scope, self._bounded(receive), send)

    def _bounded(self, receive: Receive) -> Receive:
        received_bytes, complete = 0, False

        async def bounded() -> Message:
            nonlocal received_bytes, complete
            if complete:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), BODY_TIMEOUT_S)
            except TimeoutError:
                raise HTTPException(
                    408, f"no data of the body arrived for {BODY_TIMEOUT_S:g} s; send it again"
                ) from None
            received_bytes += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received_bytes > self._limit_bytes:
                raise HTTPException(413, self._too_large(f"more than {self._limit_bytes}"))
            return message

        return bounded

    def _too_large(self, size_bytes: str) -> str:
        return f"body of {size_bytes} bytes; at most {self._limit_bytes} are accepted (--request-limit-bytes)"

    async def _refuse(self, status: int, detail: str, scope: Scope, receive: Receive, send: Send) -> None:
        response = problem_response(status, detail, scope["path"], scope.get("request_id"))
        response.headers["Connection"] = "close"
        await response(scope, receive, send)


class _Rate:
    """A token bucket for each caller, which fills at `per_s` and holds the requests of ten seconds."""

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admits(self, caller: str) -> bool:
        if self.per_s <= 0:
            return True
        now, full = time.monotonic(), max(self.per_s * BURST_S, 1.0)
        level, seen = self._buckets.pop(caller, (full, now))
        level = min(level + (now - seen) * self.per_s, full)
        admitted = level >= 1.0
        self._buckets[caller] = (level - 1.0 if admitted else level, now)
        if len(self._buckets) > CALLERS:
            self._buckets.popitem(last=False)
        return admitted


def _caller(scope: Scope) -> str:
    # By address: with a header, a caller could take a new name for each request.
    client = scope.get("client")
    return client[0] if client else "-"
