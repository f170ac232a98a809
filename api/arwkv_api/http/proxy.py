"""Serving behind proxies: a path prefix that one leaves in place, and callers' addresses that named ones tell."""

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

Networks = Sequence[IPv4Network | IPv6Network]


class Proxied:
    """ASGI layer before all others. A request from elsewhere than `proxies` is what its connection says."""

    def __init__(self, app: ASGIApp, prefix: str, proxies: Networks) -> None:
        self._app, self._prefix, self._proxies = app, prefix, proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if self._proxies and scope.get("client") and self._is_proxy(scope["client"][0]):
                self._take_forwarded(scope, Headers(scope=scope))
            if self._prefix and scope["path"] == self._prefix:
                # The page's addresses are relative to a path that ends with a slash.
                await RedirectResponse(f"{self._prefix}/", 308)(scope, receive, send)
                return
            if self._prefix and scope["path"].startswith(f"{self._prefix}/"):
                scope["path"] = scope["path"].removeprefix(self._prefix)
                scope["raw_path"] = scope["raw_path"].removeprefix(self._prefix.encode())
        await self._app(scope, receive, send)

    def _take_forwarded(self, scope: Scope, headers: Headers) -> None:
        """The caller is the last address in X-Forwarded-For that is no proxy of ours: a caller can write all before."""
        told = [one.strip() for line in headers.getlist("x-forwarded-for") for one in line.split(",")]
        for address in reversed(told):
            if not _is_address(address):
                break
            scope["client"] = (address, 0)
            if not self._is_proxy(address):
                break
        scheme = headers.get("x-forwarded-proto")
        if scheme in ("http", "https"):
            scope["scheme"] = scheme

    def _is_proxy(self, address: str) -> bool:
        return _is_address(address) and any(ip_address(address) in network for network in self._proxies)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
