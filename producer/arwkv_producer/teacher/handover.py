"""How captured rows travel from the GPU to vLLM's worker, and from there to the producer: through memory in one
process, else through files.

vLLM's own way back (msgpack between processes) halves the speed once hidden states are among the rows, so only an
acknowledgement goes that way.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor

Rows = dict[str, Tensor]
"""One sample's captured tensors by name, each with T rows on the CPU."""


class HostCopies:
    """Copies of a GPU's tensors in main memory, made on a stream of their own while the model computes on.

    Main memory is pinned: the GPU writes into other memory only while the host waits.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def start(self, x: Tensor) -> Tensor:
        """A tensor on the CPU that holds `x` as it is now, once `wait` has returned; `x` itself where it is there."""
        if not x.is_cuda:
            return x
        if self._stream is None:
            self._stream = torch.cuda.Stream(x.device)  # type: ignore[no-untyped-call]  # torch's
        self._stream.wait_stream(torch.cuda.current_stream(x.device))
        copied = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        with torch.cuda.stream(self._stream):
            copied.copy_(x, non_blocking=True)
        x.record_stream(self._stream)  # its memory is not given away before
        return copied

    def wait(self) -> None:
        """Until all copies that were started are made."""
        if self._stream is not None:
            self._stream.synchronize()


class Handover(Protocol):
    """One side puts a sample's rows under its key, the other takes them, once."""

    def put(self, key: int, rows: Mapping[str, Tensor]) -> None:
        """Hand over one sample's rows."""

    def take(self, key: int) -> Rows:
        """Receive them. Raises KeyError where nothing was put under `key`."""


class MemoryHandover:
    """Worker and producer share a process."""

    def __init__(self) -> None:
        self._rows: dict[int, Rows] = {}

    def put(self, key: int, rows: Mapping[str, Tensor]) -> None:
        self._rows[key] = dict(rows)

    def take(self, key: int) -> Rows:
        return self._rows.pop(key)


class FileHandover:
    """Worker and producer share a folder, best one in memory (/dev/shm); one safetensors file per sample."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, key: int, rows: Mapping[str, Tensor]) -> None:
        from safetensors.torch import save_file

        partial = self._folder / f"{key}.partial"
        save_file({name: tensor.contiguous() for name, tensor in rows.items()}, partial)
        os.replace(partial, self._folder / f"{key}.safetensors")

    def take(self, key: int) -> Rows:
        from safetensors.torch import load

        path = self._folder / f"{key}.safetensors"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise KeyError(key) from None
        path.unlink()
        rows: Rows = load(content)
        return rows


class HandoverFolder:
    """A new folder in memory for one engine's rows, gone at the end of the `with` block.

    It is locked as long as its producer lives; folders that are not are what dead ones left, and are removed first.
    """

    PREFIX = "arwkv-rows-"

    def __init__(self, parent: Path | None = None) -> None:
        memory = Path("/dev/shm")
        parent = parent or (memory if memory.is_dir() else Path(tempfile.gettempdir()))
        for abandoned in parent.glob(f"{self.PREFIX}*"):
            with contextlib.suppress(OSError):  # another's, locked, or gone meanwhile
                os.close(_locked(abandoned))
                shutil.rmtree(abandoned)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=self.PREFIX, dir=parent))
            with contextlib.suppress(OSError):  # another producer saw it before it was locked: make another
                self._lock = _locked(self.path)
                if self.path.is_dir():
                    return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _locked(folder: Path) -> int:
    """A descriptor that holds the folder's lock. Raises OSError where another has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


_memory = MemoryHandover()


def open_handover(folder: str | None) -> Handover:
    """The process's own memory, or `folder` where worker and producer are different processes."""
    return _memory if folder is None else FileHandover(Path(folder))
