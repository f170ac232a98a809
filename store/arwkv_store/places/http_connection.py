"""Requests to a dataset service over persistent connections; temporary faults are distinguished from others."""

import atexit
import contextlib
import functools
import json
import os
import ssl
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from arwkv_store.errors import CorruptShard, NotFound, UsageError
from arwkv_store.places.retry import Passing

TIMEOUT_S = 30.0
KEPT_S = 60.0
"""How long a connection is kept open without a request."""
LONGEST_WAIT_S = 300.0
"""Most that a service's Retry-After is waited for."""
MAX_PROBLEM_BYTES = 1 << 16
_PASSING_STATUSES = {408, 425, 429, 500, 502, 503, 504}


def answer_pieces(
    method: str,
    url: str,
    offset: int = 0,
    end: int | None = None,
    *,
    whole: Callable[[int], None] = lambda size_bytes: None,
) -> Iterator[bytes]:
    """An answer's body from a byte offset on, up to `end` where the service can.

    `whole` gets the total number of bytes, if the service sends it.
    The key is in ARWKV_API_KEY, if any; a redirect to another service does not take it along. Raises Passing for what
    may pass, NotFound, UsageError or CorruptShard for what will not.
    """
    try:
        with _client(os.getpid()).stream(method, url, headers=_headers(offset, end)) as answer:
            if (size_bytes := _whole_bytes(answer, offset, end)) is not None:
                whole(size_bytes)
            if not answer.is_success:
                raise _refusal(url, answer)
            # A server that ignores Range sends everything again.
            skip = offset if answer.status_code == 200 else 0
            # Pieces as they come: what was gathered for a larger one would be lost with the connection.
            for piece in answer.iter_raw():
                yield piece[skip:]
                skip = max(0, skip - len(piece))
    except httpx.InvalidURL as error:
        raise UsageError(f"{url}: {error}; name a dataset as http(s)://host/v1/datasets/NAME") from error
    except httpx.HTTPError as error:
        raise Passing(f"{type(error).__name__}: {error}") from error


@functools.cache
def _client(process_id: int) -> httpx.Client:
    """The connections of this process: those that a fork inherits are its parent's."""
    client = httpx.Client(
        follow_redirects=True,
        timeout=TIMEOUT_S,
        limits=httpx.Limits(keepalive_expiry=KEPT_S),
        verify=ssl.create_default_context(),
    )
    atexit.register(client.close)
    return client


def _headers(offset: int, end: int | None) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}
    if offset or end is not None:
        headers["Range"] = f"bytes={offset}-{'' if end is None else end - 1}"
    if key := os.environ.get("ARWKV_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    return headers


def _whole_bytes(answer: httpx.Response, offset: int, end: int | None) -> int | None:
    total = answer.headers.get("Content-Range", "").rpartition("/")[2]
    length = answer.headers.get("Content-Length", "")
    if total.isdecimal():
        return int(total)
    if length.isdecimal() and answer.status_code == 200:
        return int(length)
    if length.isdecimal() and answer.status_code == 206 and end is None:
        return offset + int(length)
    return None


def _refusal(where: str, answer: httpx.Response) -> Exception:
    problem, status = _problem(answer), answer.status_code
    detail = problem.get("detail") or problem.get("title") or answer.reason_phrase
    if problem.get("type") == CorruptShard.problem_type:
        return CorruptShard(f"{where}: {detail}")
    if status in _PASSING_STATUSES:
        return Passing(f"HTTP {status} {detail}", wait_s=_retry_after_s(answer.headers.get("Retry-After", "")))
    if status == 404:
        return NotFound(f"{where}: not found there ({detail}); `GET /v1/datasets` lists what is served")
    if status in (401, 403):
        return UsageError(f"{where}: HTTP {status} {detail}; set ARWKV_API_KEY to a key of the service")
    return UsageError(f"{where}: HTTP {status} {detail}; check the URI")


def _problem(answer: httpx.Response) -> dict[str, Any]:
    """The answer's problem document (RFC 9457); empty where it has none."""
    body = bytearray()
    with contextlib.suppress(httpx.HTTPError):
        for piece in answer.iter_raw():
            body += piece
            if len(body) > MAX_PROBLEM_BYTES:
                return {}
    try:
        problem = json.loads(body)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _retry_after_s(asked: str) -> float:
    """Seconds that a Retry-After of seconds or of a date asks for; 0 for anything else."""
    try:
        wait_s = float(asked) if asked.isdecimal() else parsedate_to_datetime(asked).timestamp() - time.time()
    except ValueError:
        return 0.0
    return min(max(wait_s, 0.0), LONGEST_WAIT_S)
