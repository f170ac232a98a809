"""The identity of a dataset: the contents of dataset.json, written first and never changed."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from arwkv_store.errors import ConfigurationDiffers, CorruptShard, UnsupportedVersion
from arwkv_store.format.hidden_names import hidden_column
from arwkv_store.format.seal import sealed, unsealed

FORMAT_VERSION = 2
"""The version of new datasets. A dataset of an earlier version keeps it as it grows, so its readers still work."""
READ_VERSIONS = (1, 2)

# These fields do not affect content: a newer release or another command line may resume the dataset. Nor do the names
# of the text's files: the fingerprint is that of the text itself.
NOT_COMPARED = ("format_version", "command", "versions", "created_by", "corpus.description")


class _Frozen(BaseModel):
    # `model_type` and `model` are the ecosystem's names; pydantic reserves the prefix for itself.
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class TeacherInfo(_Frozen):
    """The model whose distribution is stored."""

    model: str
    revision: str | None = None
    model_type: str
    hidden_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    dtype: str
    weights_hash: str | None = None
    block_form: str | None = None
    """How attention and MLP enter the residual stream, where hidden states depend on it; None: each behind its norm."""


class TokenizerInfo(_Frozen):
    """The tokenizer; `vocab_size` is its real number of token ids, over which the logits are normalized."""

    hash: str
    # The codecs keep 24 bits of an id.
    vocab_size: int = Field(gt=0, le=1 << 24)


class CaptureInfo(_Frozen):
    """What is stored for each position, and in which codec."""

    logits: Literal["top-k", "adaptive", "sampled", "hybrid", "none"] = "top-k"
    top_k: int | None = Field(default=None, gt=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    samples: int | None = Field(default=None, gt=0)
    hidden_states: Literal["none", "attention", "boundaries", "final"] = "none"
    layers: tuple[int, ...] = ()
    hidden_dtype: Literal["bf16", "fp8", "int8", "none"] = "bf16"
    max_length: int = Field(gt=0)
    logits_codec: Literal["exact", "compact", "sampled", "hybrid", "none"] = "exact"

    @property
    def tokens_only(self) -> bool:
        """Whether the dataset is tokenized text alone: no teacher has read it."""
        return self.logits == "none" and self.hidden_states == "none"

    def hidden_names(self) -> tuple[str, ...]:
        """Names of the hidden states these settings capture, as in `Sample.hidden`, in file order."""
        if self.hidden_states == "none":
            return ()
        if self.hidden_states == "final":
            return ("final",)
        kind = "attn" if self.hidden_states == "attention" else "boundary"
        return tuple(f"{kind}.{layer}" for layer in self.layers)

    def hidden_columns(self) -> tuple[str, ...]:
        """Names of their columns, in file order."""
        return tuple(map(hidden_column, self.hidden_names()))


class CorpusInfo(_Frozen):
    """The tokenized text. These numbers and the corpus determine the samples of each part."""

    fingerprint: str
    samples: int = Field(ge=0)
    tokens: int = Field(ge=0)
    samples_per_part: int = Field(gt=0)
    parts: int = Field(ge=0)
    description: str = ""

    @property
    def grows(self) -> bool:
        """Whether the length is that of the committed parts: `parts`, `samples` and `tokens` are 0 then, and
        `fingerprint` states the rules by which documents become rows."""
        return self.parts == 0


class DatasetInfo(_Frozen):
    """Identity of a dataset. Two runs with an equal identity make the same parts."""

    format_version: int = FORMAT_VERSION
    teacher: TeacherInfo
    tokenizer: TokenizerInfo
    vocab_size_padded: int = Field(gt=0)
    capture: CaptureInfo
    corpus: CorpusInfo
    command: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    created_by: str = ""

    def to_bytes(self) -> bytes:
        """The exact bytes of dataset.json, sealed with a hash of themselves."""
        document = self.model_dump(mode="json")
        if self.teacher.block_form is None:  # as it was before there was such a field: the bytes' hash is compared
            del document["teacher"]["block_form"]
        return sealed(document)

    @classmethod
    def from_bytes(cls, raw: bytes, where: str) -> Self:
        """Read dataset.json. Raises UnsupportedVersion before anything else is read, CorruptShard if it is damaged."""
        document = unsealed(raw, where)
        refuse_unknown_version(document, where)
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise CorruptShard(f"{where}: {field}: {first['msg']}; restore the file from a copy") from error


def refuse_unknown_version(document: Mapping[str, Any], where: str) -> None:
    """Raise UnsupportedVersion, naming both versions, unless this release reads the document's format version."""
    found = document.get("format_version")
    # 1.0 and True equal 1, but no writer stores them.
    if type(found) is not int or found not in READ_VERSIONS:
        read = " and ".join(map(str, READ_VERSIONS))
        raise UnsupportedVersion(
            f"{where}: format version {found}, this release reads versions {read}; "
            "use the release that wrote it, or capture the dataset again"
        )


def require_same(on_disk: DatasetInfo, asked: DatasetInfo, where: str) -> None:
    """Raise ConfigurationDiffers, which lists each field that affects content and differs."""
    before, after = dict(_flat(on_disk.model_dump(mode="json"))), dict(_flat(asked.model_dump(mode="json")))
    differences = [
        f"{name}: {_shown(before.get(name))} on disk, {_shown(after.get(name))} asked"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not {name, name.split(".")[0]} & set(NOT_COMPARED)
    ]
    if differences:
        raise ConfigurationDiffers(
            f"{where}: {'; '.join(differences)}; name another folder, or use the settings that it has"
        )


def _flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _shown(value: object) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)
