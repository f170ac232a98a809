"""The `api` command."""

import sys

from arwkv_api.config import KeyConfig, ServeConfig
from arwkv_store.commands.command_line import main as run_command


def serve(config: ServeConfig) -> None:
    """Index dataset folders and serve them over HTTP, with a page for people."""
    from arwkv_api.http.server import run

    run(config)


def key(config: KeyConfig) -> dict[str, object]:
    """Make a bearer key, and add its hash to a key file for `api serve --keys`."""
    from arwkv_api.access.keys import add_key

    key, secret = add_key(config.keys, config.name, frozenset(config.scope), config.dataset, config.days)
    if not config.json:
        print(f"{key.described()}; it is shown only once", file=sys.stderr)
        print(secret)
    return {**key.as_document(), "key": secret}


def main() -> None:
    """Run one of the commands."""
    run_command("api", "The index service of teacher-logit datasets.", {"serve": serve, "key": key})
