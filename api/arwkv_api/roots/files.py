"""Opening files of a dataset or a run, and nothing that lies outside its folder."""

import contextlib
import os
import stat
from pathlib import Path

from arwkv_store.format.heartbeat import MAX_HEARTBEAT_BYTES, is_heartbeat


def open_inside(folder: Path, name: str) -> int:
    """A read-only descriptor of the regular file `name` directly in `folder`.

    `name` is one path component. A symbolic link, a folder, a device or a pipe is refused with OSError, so that nothing
    outside the folder can be reached through it.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise OSError(f"{name!r}: not a file name")
    folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # O_NONBLOCK: opening a pipe must not wait for its writer.
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder_fd)
    finally:
        os.close(folder_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{name}: not a regular file")
    return fd


def read_inside(folder: Path, name: str, limit_bytes: int) -> bytes:
    """The whole of a small file. Raises OSError, also where it is larger than `limit_bytes`."""
    fd = open_inside(folder, name)
    with os.fdopen(fd, "rb") as file:
        size_bytes = os.fstat(fd).st_size
        if size_bytes > limit_bytes:
            raise OSError(f"{name}: {size_bytes} bytes, more than the {limit_bytes} that such a file may have")
        return file.read(limit_bytes)


def heartbeats_in(folder: Path) -> list[bytes]:
    """The heartbeat files of a dataset or a run, in the order of their names; none where it cannot be listed."""
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for name in sorted(entry.name for entry in entries if is_heartbeat(entry.name)):
            with contextlib.suppress(OSError):  # replaced or removed just now
                found.append(read_inside(folder, name, MAX_HEARTBEAT_BYTES))
    return found
