"""Reading one Arrow file of a part: nothing is parsed or used before its hash was compared."""

import hashlib
import mmap
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from arwkv_store.arrow.ipc_message import require_plain_body
from arwkv_store.errors import CorruptShard
from arwkv_store.format.codecs.frames import BadCell
from arwkv_store.format.manifest import FileInfo, Region

REMEDY = 'run "store verify --repair DIR" to set the part aside, then make it again'


class ArrowFile:
    """A memory-mapped Arrow file whose regions are verified before their first use."""

    def __init__(self, path: Path, info: FileInfo, *, verify: bool) -> None:
        self.path, self.info = path, info
        self._verify = verify
        self._map = _mapped(path, info.size_bytes)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._verified = [not verify] * len(info.batches)
        if verify:
            self._compare(info.head, "schema")
            self._compare(info.footer, "footer")
        try:
            self._reader = pa.ipc.open_file(pa.py_buffer(self._bytes))
        except (pa.ArrowException, OSError) as error:
            raise CorruptShard(f"{path}: footer: {error}; {REMEDY}") from error
        if self._reader.num_record_batches != len(info.batches):
            raise CorruptShard(
                f"{path}: footer: {self._reader.num_record_batches} record batches, "
                f"the manifest lists {len(info.batches)}; {REMEDY}"
            )
        self.schema: pa.Schema = self._reader.schema

    def batch(self, index: int) -> pa.RecordBatch:
        """A verified record batch, its buffers views on the file. Raises CorruptShard."""
        info = self.info.batches[index]
        self.require_whole()
        if not self._verified[index]:
            self._compare(info, f"record batch {index}")
            self._verified[index] = True
        try:
            require_plain_body(self._bytes[info.offset : info.offset + info.length].data)
            batch = self._reader.get_batch(index)
            batch.validate()
        except (pa.ArrowException, OSError, BadCell) as error:
            raise CorruptShard(f"{self.path}: record batch {index}: {error}; {REMEDY}") from error
        if batch.num_rows != info.rows:
            raise CorruptShard(f"{self.path}: record batch {index}: {batch.num_rows} rows, not {info.rows}; {REMEDY}")
        return batch

    def verify_all(self) -> None:
        """Compare every record batch. Raises CorruptShard."""
        for index in range(len(self.info.batches)):
            self.batch(index)

    def verify_sha256(self) -> None:
        """Compare the whole file's SHA-256 with the committed one. Raises CorruptShard."""
        self.require_whole()
        found = hashlib.sha256(self._bytes.data).hexdigest()
        if found != self.info.sha256:
            raise CorruptShard(f"{self.path}: SHA-256 {found}, committed as {self.info.sha256}; {REMEDY}")

    def require_whole(self) -> None:
        """Raise CorruptShard if the file was cut: reading a mapped page that it no longer has ends the process."""
        found = self._map.size()
        if found < self.info.size_bytes:
            raise CorruptShard(f"{self.path}: cut to {found} bytes while it was open; {REMEDY}")

    def _compare(self, region: Region, name: str) -> None:
        found = xxhash.xxh3_64_hexdigest(self._bytes[region.offset : region.offset + region.length].data)
        if found != region.xxh3:
            raise CorruptShard(
                f"{self.path}: {name}: checksum {found}, committed as {region.xxh3} "
                f"(bytes {region.offset}..{region.offset + region.length}); {REMEDY}"
            )


def _mapped(path: Path, size_bytes: int) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno()).st_size
            if found != size_bytes or not found:
                raise CorruptShard(f"{path}: {found} bytes, committed with {size_bytes}; {REMEDY}")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise CorruptShard(f"{path}: missing, though its manifest is there; {REMEDY}") from error
