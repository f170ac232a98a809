"""The manifest of one part: every file's size and hashes, written last, so that its existence is the commit."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from arwkv_store.errors import CorruptShard
from arwkv_store.format.layout import data_file_name
from arwkv_store.format.schema import ADDRESSED_VERSION, FORMAT_VERSION, refuse_unknown_version
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


class BatchInfo(Region):
    """One record batch: the IPC message's range, and how many rows it holds."""

    rows: Count


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
    """What is committed of one part."""

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
        version = ADDRESSED_VERSION if addressed else FORMAT_VERSION
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
        rows = sum(batch.rows for batch in file.batches)
        address = file.sha256 if manifest.format_version == ADDRESSED_VERSION else ""
        if end != file.size_bytes or rows != manifest.rows or file.name != data_file_name(manifest.part, kind, address):
            raise CorruptShard(
                f"{where}: {file.name}: {end} of {file.size_bytes} bytes and {rows} of {manifest.rows} rows are covered"
            )
