"""Access rights: bearer keys with scopes, if any key is set."""

from fastapi import Request, Security
from fastapi.security import HTTPBearer

from arwkv_api.access.keyring import Keyring
from arwkv_api.access.keys import Key, Scope, find_key
from arwkv_api.errors import Forbidden, Unauthorized


class _Requires(HTTPBearer):
    """Accepts a request if its key has the scope. A service without keys, on loopback, accepts every request.

    Declaration and check are one dependency, because each dependency takes time with every request.
    """

    def __init__(self, scope: Scope, *, all_datasets: bool = False) -> None:
        description = "A key made by `api key`, or the one given as --api-key."
        super().__init__(scheme_name="HTTPBearer", description=description, auto_error=False)
        self._scope, self._all_datasets = scope, all_datasets

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
            request.scope["key_name"], request.scope["key"] = key.name, key
            if key.has_expired():
                raise Unauthorized(
                    f"this key expired at {key.expires_at:%Y-%m-%d %H:%M} UTC; ask the operator for another"
                )
            if self._scope not in key.scopes:
                raise Forbidden(f"this key lacks scope {self._scope!r}; ask the operator for a key that has it")

            if key.datasets and self._all_datasets:
                raise Forbidden(f"this key is for datasets {', '.join(key.datasets)} only")
            if (name := request.path_params.get("name")) is not None:
                require_admitted(request, name)


def admitted(request: Request) -> tuple[str, ...]:
    """The names and prefixes of datasets that the caller's key is for; none: all."""
    key: Key | None = request.scope.get("key")
    return () if key is None else key.datasets


def is_admitted(request: Request, dataset: str) -> bool:
    """Whether the caller's key is for this dataset."""
    key: Key | None = request.scope.get("key")
    return key is None or key.admits(dataset)


def require_admitted(request: Request, dataset: str) -> None:
    """Raise Forbidden if the caller's key is for other datasets."""
    if not is_admitted(request, dataset):
        raise Forbidden(f"this key is for datasets {', '.join(admitted(request))}, not for {dataset[:100]!r}")


def require_key(request: Request, what: str) -> None:
    """Raise Forbidden where everyone may write, because the service has no keys."""
    if "key_name" not in request.scope:
        raise Forbidden(f"{what} only with a write key; start the service with --keys or ARWKV_API_KEY")


# Every operation either has a dataset's `name` in its path, asks `admitted` itself, or is for keys of all datasets.
Read = Security(_Requires("read"))
ReadAll = Security(_Requires("read", all_datasets=True))
Write = Security(_Requires("write"))
WriteAll = Security(_Requires("write", all_datasets=True))
