"""The manifest of one part: every file's size and hashes, written last, so that its existence is the commit."""

from itertools import accumulate
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from arwkv_store.errors import CorruptShard
from arwkv_store.format.layout import data_file_name
from arwkv_store.format.schema import FORMAT_VERSION, refuse_unknown_version
from arwkv_store.format.seal import sealed, unsealed
from arwkv_store.format.statistics import ShardStats

_FROZEN = ConfigDict(frozen=True, extra="forbid")

# A manifest may come from anywhere: its hashes become file names in the cache, its numbers sizes and indices.
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Xxh3 = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Count = Annotated[int, Field(strict=True, ge=0, lt=10**12)]
SampleId = Annotated[int, Field(strict=True, ge=-(1 << 63), lt=1 << 63)]


class Region(BaseModel):
    """A range of a file and the xxh3-64 of its bytes, 16 hex digits."""

    model_config = _FROZEN
    offset: Count
    length: Count
    xxh3: Xxh3


class ColumnInfo(BaseModel):
    """One heavy column of a record batch: the number of its bytes in the message, and their xxh3-64."""

    model_config = _FROZEN
    length: Count
    xxh3: Xxh3


class BatchInfo(Region):
    """One record batch: the IPC message's range and its number of rows.

    Its heavy `columns` are the last bytes of the message, and `xxh3` covers the bytes before them. In version 1 there
    are no columns, and `xxh3` covers the whole message.
    """

    rows: Count
    columns: tuple[ColumnInfo, ...] = ()

    @model_serializer(mode="wrap")
    def _as_its_version(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = plain(self)
        if not self.columns:
            del document["columns"]
        return document

    @property
    def head(self) -> Region:
        """The message before the heavy columns: its metadata and the light columns."""
        length = self.length - sum(column.length for column in self.columns)
        return Region.model_construct(offset=self.offset, length=length, xxh3=self.xxh3)

    @property
    def column_regions(self) -> list[Region]:
        """The range of each heavy column, in the order of the schema."""
        ends = accumulate((column.length for column in self.columns), initial=self.offset + self.head.length)
        return [
            Region.model_construct(offset=start, length=column.length, xxh3=column.xxh3)
            for start, column in zip(ends, self.columns, strict=False)
        ]


class FileInfo(BaseModel):
    """One Arrow file. `head`, `batches` and `footer` tile it: every byte is covered by exactly one hash."""

    model_config = _FROZEN
    name: str
    size_bytes: Count
    sha256: Sha256
    head: Region
    footer: Region
    batches: tuple[BatchInfo, ...]


class ShardManifest(BaseModel):
    """One committed part."""

    model_config = _FROZEN
    format_version: int = FORMAT_VERSION
    part: Count
    rows: Count
    tokens: Count
    first_sample_id: SampleId
    last_sample_id: SampleId
    dataset_hash: Sha256
    files: dict[str, FileInfo]
    """"rows", and "hidden" where hidden states were captured."""
    stats: ShardStats

    @property
    def size_bytes(self) -> int:
        """Bytes of the part's data files together."""
        return sum(file.size_bytes for file in self.files.values())

    def named(self, *, addressed: bool) -> Self:
        """The same part with its files named by their content too, as in an object store, or by the part alone."""
        files = {
            kind: file.model_copy(update={"name": data_file_name(self.part, kind, file.sha256 if addressed else "")})
            for kind, file in self.files.items()
        }
        columns = any(batch.columns for file in files.values() for batch in file.batches)
        version = 2 if addressed or columns else 1
        return self.model_copy(update={"files": files, "format_version": version})

    def to_bytes(self) -> bytes:
        """The exact bytes of part-NNNNNN.json."""
        return sealed(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, raw: bytes, where: str) -> Self:
        """Read and verify a manifest. Raises CorruptShard or UnsupportedVersion."""
        return cls.from_document(unsealed(raw, where), where)

    @classmethod
    def from_document(cls, document: dict[str, Any], where: str) -> Self:
        """A manifest from its unsealed document. Raises CorruptShard or UnsupportedVersion."""
        refuse_unknown_version(document, where)
        try:
            manifest = cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise CorruptShard(f"{where}: {field}: {first['msg']}; make the part again") from error
        _require_tiling(manifest, where)
        return manifest


def _require_tiling(manifest: ShardManifest, where: str) -> None:
    if "rows" not in manifest.files or not set(manifest.files) <= {"rows", "hidden"}:
        raise CorruptShard(f"{where}: lists files {sorted(manifest.files)}, expected rows and perhaps hidden")
    for kind, file in manifest.files.items():
        end = 0
        for region in (file.head, *file.batches, file.footer):
            if region.offset != end:
                raise CorruptShard(f"{where}: {file.name}: regions do not tile the file at byte {region.offset}")
            end += region.length
        if any(batch.head.length < 0 for batch in file.batches):
            raise CorruptShard(f"{where}: {file.name}: columns longer than their record batch")
        if manifest.format_version == 1 and any(batch.columns for batch in file.batches):
            raise CorruptShard(f"{where}: {file.name}: checksums of columns, which version 1 does not have")
        names = [data_file_name(manifest.part, kind)]
        if manifest.format_version > 1:
            names.append(data_file_name(manifest.part, kind, file.sha256))
        rows = sum(batch.rows for batch in file.batches)
        if end != file.size_bytes or rows != manifest.rows or file.name not in names:
            raise CorruptShard(
                f"{where}: {file.name}: {end} of {file.size_bytes} bytes and {rows} of {manifest.rows} rows are covered"
            )
