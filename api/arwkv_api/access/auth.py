"""Access rights: bearer keys with scopes, if any key is set."""

from fastapi import Request, Security
from fastapi.security import HTTPBearer

from arwkv_api.access.keyring import Keyring
from arwkv_api.access.keys import Scope, find_key
from arwkv_api.errors import Forbidden, Unauthorized


class _Requires(HTTPBearer):
    """Accepts a request if its key has the scope. A service without keys, on loopback, accepts every request.

    Declaration and check are one dependency, because each dependency takes time with every request.
    """

    def __init__(self, scope: Scope) -> None:
        description = "A key made by `api key`, or the one given as --api-key."
        super().__init__(scheme_name="HTTPBearer", description=description, auto_error=False)
        self._scope = scope

    async def __call__(self, request: Request) -> None:
        keyring: Keyring = request.app.state.keyring
        if keyring.locked:
            given = await super().__call__(request)
            if given is None and self._scope == "read" and keyring.public_read:
                return
            if given is None:
                raise Unauthorized("no key given; send the header Authorization: Bearer KEY")
            key = find_key(keyring.current(), given.credentials)
            if key is None:
                raise Unauthorized("this key is not known; ask the operator for a key made by `api key`")
            request.scope["key_name"] = key.name
            if self._scope not in key.scopes:
                raise Forbidden(f"this key lacks scope {self._scope!r}; ask the operator for a key that has it")


Read = Security(_Requires("read"))
Write = Security(_Requires("write"))
