"""Checks the Host of requests, and the origin of writes: a page of another site can make a browser send any request."""

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from arwkv_api.config import ANY_ADDRESS, ANY_HOST
from arwkv_api.http.access_log import READING
from arwkv_api.http.problems import problem_response


class Hosts:
    """ASGI layer that answers 421 for a foreign Host, and 403 for a write that a page of another origin sends.

    starlette's TrustedHostMiddleware answers in plain text, and cannot express "any address, but no foreign name".
    """

    def __init__(self, app: ASGIApp, trusted: Collection[str]) -> None:
        self._app, self._trusted = app, frozenset(trusted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (problem := self._problem(scope["method"], Headers(scope=scope))) is None:
            await self._app(scope, receive, send)
            return
        status, detail = problem
        await problem_response(status, detail, scope["path"], scope.get("request_id"))(scope, receive, send)

    def _problem(self, method: str, headers: Headers) -> tuple[int, str] | None:
        hosts = headers.getlist("host")
        for host in hosts:
            if not self._is_trusted(host):
                return 421, f"Host: {host[:100]!r} is not a name of this service; start it with --trusted-host NAME"
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        foreign = site not in ("same-origin", "none") if site else origin is not None and _netloc(origin) not in hosts
        if foreign and method not in READING:
            return 403, f"{method} from a page of another origin ({(origin or site or '')[:100]!r}) is refused"
        return None

    def _is_trusted(self, host: str) -> bool:
        name = _name(host)
        if name is None or {name, ANY_HOST} & self._trusted:
            return name is not None
        return ANY_ADDRESS in self._trusted and _is_address(name)


def _name(host: str) -> str | None:
    """The name or address in a Host header, without port and brackets; None if there is none."""
    try:
        parts = urlsplit(f"//{host}")
        return parts.hostname if parts.netloc == host and "@" not in host else None
    except ValueError:
        return None


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
