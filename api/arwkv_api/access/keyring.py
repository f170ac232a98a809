"""The current keys: the operator's own, and those of the key file."""

import logging
import time
from pathlib import Path

from arwkv_api.access.keys import Key, digest_of, load_keys
from arwkv_store.errors import UsageError

log = logging.getLogger("arwkv_api.keys")

# How long a key may still work after it was deleted from the file.
LOOK_EVERY_S = 1.0


class Keyring:
    """Follows the key file, so that keys change without a restart."""

    def __init__(self, api_key: str | None, path: Path | None, *, public_read: bool = False) -> None:
        self._own = (Key("operator", frozenset({"read", "write"}), digest_of(api_key)),) if api_key else ()
        self._path, self.public_read = path, public_read
        self._from_file = load_keys(path) if path is not None else ()
        self._looked_at_s = time.monotonic()

    @property
    def locked(self) -> bool:
        """Whether callers need a key, also if the key file is empty."""
        return bool(self._own) or self._path is not None

    def current(self) -> tuple[Key, ...]:
        """Every key that is accepted now.

        A deleted key file accepts no key; one that cannot be read leaves the keys unchanged.
        """
        if self._path is not None and time.monotonic() - self._looked_at_s > LOOK_EVERY_S:
            self._looked_at_s = time.monotonic()
            try:
                self._from_file = load_keys(self._path) if self._path.exists() else ()
            except UsageError as error:
                log.error("%s", error)
        return (*self._own, *self._from_file)
