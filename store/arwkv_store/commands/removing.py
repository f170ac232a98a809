"""`store rm` and `store gc`: a dry run, unless the user says yes."""

from typing import Any

from arwkv_store.dataset.garbage import collect, find_garbage
from arwkv_store.dataset.remove import plan_removal, remove
from arwkv_store.errors import UsageError


def remove_dataset(uri: str, *, yes: bool, quiet: bool) -> dict[str, Any]:
    """Show what a dataset's removal takes, and with `yes` remove it. Raises NotFound, UsageError, TryAgain."""
    removal = plan_removal(uri)
    if not quiet:
        what = f"{removal.parts:,} parts, {len(removal.names):,} files, {removal.size_bytes:,} bytes"
        print(f"{uri}: {what} removed" if yes else f"{uri}: {what} would be removed; add --yes to remove them")
    removed = sum(1 for _ in remove(uri, removal)) if yes else 0
    return {
        "uri": uri,
        "parts": removal.parts,
        "files": len(removal.names),
        "size_bytes": removal.size_bytes,
        "removed": removed,
    }


def collect_garbage(uri: str, older_hours: float, *, yes: bool, quiet: bool) -> dict[str, Any]:
    """Show files that no manifest names, and with `yes` remove them. Raises NotFound, UsageError, TryAgain."""
    if not older_hours >= 0:
        raise UsageError(f"--older-hours {older_hours}: must be 0 or more")
    found = []
    for garbage in collect(uri, older_hours * 3600) if yes else find_garbage(uri, older_hours * 3600):
        found.append(garbage)
        if not quiet:
            print(f"{garbage.name}  {garbage.size_bytes:,} bytes  {garbage.why}")
    size_bytes = sum(garbage.size_bytes for garbage in found)
    if not quiet:
        done = "removed" if yes else "would be removed; add --yes to remove them" if found else "to remove"
        print(f"{uri}: {len(found):,} files, {size_bytes:,} bytes {done}")
    return {
        "uri": uri,
        "files": [{"name": one.name, "size_bytes": one.size_bytes, "why": one.why} for one in found],
        "size_bytes": size_bytes,
        "removed": yes,
    }
