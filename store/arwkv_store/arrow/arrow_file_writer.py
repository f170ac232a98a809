"""Writes one Arrow file of a part, batch by batch, and hashes the bytes as they are written."""

import hashlib
from collections.abc import Iterable
from itertools import pairwise
from typing import IO

import pyarrow as pa
import xxhash

from arwkv_store.arrow.ipc_message import batch_layout
from arwkv_store.format.manifest import BatchInfo, ColumnInfo, FileInfo, Region

MAGIC = b"ARROW1\0\0"


class _HashingSink:
    """A file pyarrow can write to; it remembers the hash of each region and of the whole."""

    def __init__(self, file: IO[bytes], head_bytes: int) -> None:
        self._file = file
        self._head_bytes = head_bytes
        self.head: Region | None = None
        self._whole = hashlib.sha256()
        self._region: list[memoryview] = []
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
        self._region.append(view)
        self.size_bytes += len(view)
        while view:
            view = view[self._file.write(view) :]

    def end_region(self) -> Region:
        offset, length = self._region_start, self.size_bytes - self._region_start
        return Region(offset=offset, length=length, xxh3=xxhash.xxh3_64_hexdigest(self._end()))

    def end_batch(self, rows: int, heavy: int) -> BatchInfo:
        """The region written since the last one: a record batch, whose last `heavy` columns are hashed one by one."""
        offset, message = self._region_start, memoryview(self._end())
        starts = batch_layout(message, len(message)).heavy_starts(heavy) if heavy else []
        head, *columns = (message[start:end] for start, end in pairwise([0, *starts, len(message)]))
        return BatchInfo(
            offset=offset,
            length=len(message),
            xxh3=xxhash.xxh3_64_hexdigest(head),
            rows=rows,
            columns=tuple(ColumnInfo(length=len(c), xxh3=xxhash.xxh3_64_hexdigest(c)) for c in columns),
        )

    def _end(self) -> bytes:
        written = b"".join(self._region)
        self._region, self._region_start = [], self.size_bytes
        return written

    def sha256(self) -> str:
        return self._whole.hexdigest()

    def tell(self) -> int:
        return self.size_bytes

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def write_arrow_file(
    file: IO[bytes], name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], heavy: int
) -> FileInfo:
    """Write an Arrow IPC file; returns its entry in the manifest. `name` is its final name; the last `heavy` columns
    get checksums of their own. Raises OSError.
    """
    sink = _HashingSink(file, len(MAGIC) + schema.serialize().size)
    infos: list[BatchInfo] = []
    with pa.PythonFile(sink, mode="w") as stream, pa.ipc.new_file(stream, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            infos.append(sink.end_batch(batch.num_rows, heavy))
    assert sink.head is not None, "pyarrow writes the schema before it closes"
    return FileInfo(
        name=name,
        footer=sink.end_region(),
        size_bytes=sink.size_bytes,
        sha256=sink.sha256(),
        head=sink.head,
        batches=tuple(infos),
    )
