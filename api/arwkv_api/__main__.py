"""`python -m arwkv_api` is the `api` command."""

from arwkv_api.cli import main

main()
