"""One Arrow file of a part, written batch by batch, its hashes taken from the bytes as they pass."""

import hashlib
from collections.abc import Iterable
from typing import IO

import pyarrow as pa
import xxhash

from arwkv_store.format.manifest import BatchInfo, FileInfo, Region

_MAGIC = b"ARROW1\0\0"


class _HashingSink:
    """A file pyarrow can write to; it remembers the hash of each region and of the whole."""

    def __init__(self, file: IO[bytes], head_bytes: int) -> None:
        self._file = file
        self._head_bytes = head_bytes
        self.head: Region | None = None
        self._whole = hashlib.sha256()
        self._region = xxhash.xxh3_64()
        self._region_start = self.size_bytes = 0
        self.closed = False

    def write(self, chunk: bytes) -> int:
        view = memoryview(chunk).cast("B")
        if self.head is None and self.size_bytes + len(view) >= self._head_bytes:
            # pyarrow writes the schema with the first batch; it is a region of its own.
            split = self._head_bytes - self.size_bytes
            self._append(view[:split])
            self.head = self.end_region()
            self._append(view[split:])
        else:
            self._append(view)
        return len(view)

    def _append(self, view: memoryview) -> None:
        self._whole.update(view)
        self._region.update(view)
        self.size_bytes += len(view)
        while view:
            view = view[self._file.write(view) :]

    def end_region(self) -> Region:
        region = Region(
            offset=self._region_start,
            length=self.size_bytes - self._region_start,
            xxh3=self._region.hexdigest(),
        )
        self._region, self._region_start = xxhash.xxh3_64(), self.size_bytes
        return region

    def sha256(self) -> str:
        return self._whole.hexdigest()

    def tell(self) -> int:
        return self.size_bytes

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def write_arrow_file(file: IO[bytes], name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> FileInfo:
    """Write an Arrow IPC file and say what it holds. `name` is the file's final name. Raises OSError."""
    sink = _HashingSink(file, len(_MAGIC) + schema.serialize().size)
    infos: list[BatchInfo] = []
    with pa.PythonFile(sink, mode="w") as stream, pa.ipc.new_file(stream, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            infos.append(BatchInfo(**sink.end_region().model_dump(), rows=batch.num_rows))
    assert sink.head is not None, "pyarrow writes the schema before it closes"
    return FileInfo(
        name=name,
        footer=sink.end_region(),
        size_bytes=sink.size_bytes,
        sha256=sink.sha256(),
        head=sink.head,
        batches=tuple(infos),
    )
