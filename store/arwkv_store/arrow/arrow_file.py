"""Reading one Arrow file of a part: nothing is parsed or used before its checksum is compared."""

import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from arwkv_store.arrow.arrow_file_writer import MAGIC
from arwkv_store.arrow.batch import Batch
from arwkv_store.arrow.ipc_message import PREFIX_BYTES, Span, batch_layout, metadata_bytes
from arwkv_store.errors import CorruptShard, storage_error
from arwkv_store.format.codecs.frames import BadCell
from arwkv_store.format.file_hash import PIECE_BYTES, sha256_of
from arwkv_store.format.manifest import BatchInfo, FileInfo, Region

REMEDY = 'run "store verify --repair DIR" to set the part aside, then make it again'
GAP_BYTES = 64 << 10
"""Regions that are at most this far apart are fetched by one request."""

Fetch = Callable[[Sequence[tuple[int, int]]], None]
"""Fetches byte ranges of a sparse file into place."""


class ArrowFile:
    """An open Arrow file whose regions are verified before their first use.

    It is read, never mapped: a truncated file or a disk error raises here, but would end the process in a mapping.

    With `fetch`, the file is a sparse copy: missing ranges are fetched before they are read.
    """

    def __init__(self, path: Path, info: FileInfo, *, verify: bool, fetch: Fetch | None = None) -> None:
        self.path, self.info = path, info
        self._verify, self._fetch = verify, fetch
        self._file = _opened(path, info.size_bytes)
        weakref.finalize(self, os.close, self._file)
        self._verified = set[int]()
        self._require([info.head], "schema")
        if fetch is None:
            self._require([info.footer], "footer")
        try:
            schema = self._read(len(MAGIC), info.head.length - len(MAGIC))
            self.schema: pa.Schema = pa.ipc.read_schema(pa.py_buffer(schema))
        except (pa.ArrowException, OSError) as error:
            raise CorruptShard(f"{path}: schema: {error}; {REMEDY}") from error
        if any(len(batch.columns) > len(self.schema.names) for batch in info.batches):
            raise CorruptShard(f"{path}: schema: {len(self.schema.names)} columns, fewer than checksums; {REMEDY}")

    def batch(self, index: int, *, light: bool, heavy: Sequence[str]) -> Batch:
        """A record batch's light columns (or only those that identify a row) and the requested heavy ones, verified.

        Tokens and heavy values are read when they are taken. Raises CorruptShard, OSError faults as `storage_error`
        names them.
        """
        info = self.info.batches[index]
        names = self.schema.names[len(self.schema.names) - len(info.columns) :]
        chosen = [region for name, region in zip(names, info.column_regions, strict=True) if name in heavy]
        self._require([info.head, *chosen], f"record batch {index}")
        try:
            return self._parsed(info, light, heavy)
        except BadCell as error:
            raise CorruptShard(f"{self.path}: record batch {index}: {error}; {REMEDY}") from error

    def _parsed(self, info: BatchInfo, light: bool, heavy: Sequence[str]) -> Batch:
        prefix = self._read(info.offset, min(PREFIX_BYTES, info.length))
        metadata = self._read(info.offset, min(metadata_bytes(prefix), info.length))
        layout = batch_layout(memoryview(metadata), info.length)
        if layout.rows != info.rows:
            raise BadCell(f"{layout.rows} rows, not {info.rows}")
        # A buffer must end in the region in which it begins, so that only compared bytes are used.
        if layout.heavy_starts(len(info.columns)) != [region.offset - info.offset for region in info.column_regions]:
            raise BadCell("columns do not lie where the manifest says")

        def take(span: Span) -> NDArray[np.uint8]:
            return np.frombuffer(self._read(info.offset + span.start, span.length), np.uint8)

        return Batch(self.schema, layout, take, light, heavy)

    def verify_all(self) -> None:
        """Compare every record batch. Raises CorruptShard."""
        for index, info in enumerate(self.info.batches):
            self.batch(index, light=False, heavy=self.schema.names[len(self.schema.names) - len(info.columns) :])

    def verify_sha256(self) -> None:
        """Compare the whole file's SHA-256 with the committed one. Raises CorruptShard."""
        found = sha256_of(self._pieces(0, self.info.size_bytes))
        if found != self.info.sha256:
            raise CorruptShard(f"{self.path}: SHA-256 {found}, committed as {self.info.sha256}; {REMEDY}")

    def _require(self, regions: Sequence[Region], name: str) -> None:
        """Compare regions that were not compared yet. Raises CorruptShard."""
        new = [region for region in regions if region.offset not in self._verified]
        if self._fetch is not None:
            lacking = [region for region in new if self._checksum(region) != region.xxh3]
            if lacking:
                self._fetch(joined(lacking))
        elif not self._verify:
            return
        for region in new:
            found = self._checksum(region)
            if found != region.xxh3:
                raise CorruptShard(
                    f"{self.path}: {name}: checksum {found}, committed as {region.xxh3} "
                    f"(bytes {region.offset}..{region.offset + region.length}); {REMEDY}"
                )
            self._verified.add(region.offset)

    def _checksum(self, region: Region) -> str:
        digest = xxhash.xxh3_64()
        for piece in self._pieces(region.offset, region.length):
            digest.update(piece)
        return digest.hexdigest()

    def _read(self, offset: int, length: int) -> bytes:
        """Bytes of the file. Raises CorruptShard if it was truncated, and what `storage_error` names."""
        return b"".join(self._pieces(offset, length, piece_bytes=length))

    def _pieces(self, offset: int, length: int, piece_bytes: int = PIECE_BYTES) -> Iterator[bytes]:
        at, end = offset, offset + length
        while at < end:
            try:
                piece = os.pread(self._file, min(piece_bytes, end - at), at)
            except OSError as error:
                raise storage_error(str(self.path), error) from error
            if not piece:
                found = os.fstat(self._file).st_size
                raise CorruptShard(f"{self.path}: truncated to {found} bytes while it was open; {REMEDY}")
            yield piece
            at += len(piece)


def joined(regions: Sequence[Region]) -> list[tuple[int, int]]:
    """Regions in their order as (start, end) ranges; near ones are joined."""
    ranges: list[tuple[int, int]] = []
    for region in regions:
        end = region.offset + region.length
        if ranges and region.offset - ranges[-1][1] <= GAP_BYTES:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((region.offset, end))
    return ranges


def _opened(path: Path, size_bytes: int) -> int:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise CorruptShard(f"{path}: missing, although its manifest exists; {REMEDY}") from error
    except OSError as error:
        raise storage_error(str(path), error) from error
    found = os.fstat(file).st_size
    if found != size_bytes or not found:
        os.close(file)
        raise CorruptShard(f"{path}: {found} bytes, committed with {size_bytes}; {REMEDY}")
    return file
