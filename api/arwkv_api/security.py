"""Who may do what: bearer keys with scopes, where any key is set."""

import logging
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from arwkv_api.keys import Scope, find_key
from arwkv_api.problems import Forbidden, Unauthorized
from arwkv_api.service import ServiceDep

audit = logging.getLogger("arwkv_api.audit")

_bearer = HTTPBearer(auto_error=False, description="A key made by `api key`, or the one given as --api-key.")


async def _caller(
    request: Request, service: ServiceDep, given: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> frozenset[Scope]:
    """The scopes of the request's key; all of them where the service has no keys (it is on loopback then)."""
    if not service.keyring.locked:
        return frozenset({"read", "write"})
    if given is None:
        raise Unauthorized("no key given; send the header Authorization: Bearer KEY")
    key = find_key(service.keyring.current(), given.credentials)
    if key is None:
        raise Unauthorized("this key is not known; ask the operator for one, made by `api key`")
    request.scope["key_name"] = key.name
    return key.scopes


def _require(scope: Scope) -> Callable[[Request, frozenset[Scope]], Awaitable[None]]:
    async def check(request: Request, scopes: Annotated[frozenset[Scope], Depends(_caller)]) -> None:
        if scope not in scopes:
            raise Forbidden(f"this key may not {scope}; ask the operator for one with scope {scope!r}")
        if scope == "write":
            audit.info("%s %s by %s", request.method, request.url.path, request.scope.get("key_name", "anyone"))

    return check


Read = Depends(_require("read"))
Write = Depends(_require("write"))
