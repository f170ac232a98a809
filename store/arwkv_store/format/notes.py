"""Notes and tags on a dataset or a run: people's own words, in a small file beside the data that decides nothing."""

import hashlib
import time
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from arwkv_store.errors import UnsupportedVersion, UsageError
from arwkv_store.format.layout import NOTES_FILE

MAX_NOTES_BYTES = 1 << 16
MAX_CHARACTERS, MAX_TAGS = 8000, 32
# Control characters besides tab and newline move a terminal's cursor, or end a text in a database.
WITHOUT_CONTROLS = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$"
TAG = r"^[a-z0-9][a-z0-9._-]{0,39}$"
_VERSION_DIGITS = 32

Text = Annotated[str, Field(max_length=MAX_CHARACTERS, pattern=WITHOUT_CONTROLS)]
Tag = Annotated[str, Field(pattern=TAG, examples=["baseline"])]


class Notes(BaseModel):
    """What people say of a dataset or a run. Its fields have defaults, so that a file may be written by hand."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    format_version: Literal[1] = 1
    text: Text = ""
    tags: tuple[Tag, ...] = Field(default=(), max_length=MAX_TAGS)
    changed_at_s: float | None = Field(default=None, ge=0, lt=1e11, description="seconds since the epoch; null: never")

    @field_validator("tags")
    @classmethod
    def _each_once(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(tags)))

    @classmethod
    def said_now(cls, text: str, tags: Sequence[str]) -> Self:
        """These words, said at this moment. Raises UsageError for words that notes cannot have."""
        try:
            return cls(text=text, tags=tuple(tags), changed_at_s=time.time())
        except ValidationError as error:
            raise UsageError(
                f"notes: {_reason(error)}; a text has at most {MAX_CHARACTERS} characters without control characters, "
                f"and there are at most {MAX_TAGS} tags like {TAG}"
            ) from error

    def to_bytes(self) -> bytes:
        """The exact bytes of the file."""
        return self.model_dump_json().encode() + b"\n"

    @classmethod
    def from_bytes(cls, raw: bytes, where: str) -> Self:
        """Empty ones where there is no file (no bytes). Raises UnsupportedVersion for bytes that are no notes."""
        if not raw:
            return cls()
        try:
            if len(raw) > MAX_NOTES_BYTES:
                raise ValueError(f"more than {MAX_NOTES_BYTES} bytes")
            return cls.model_validate_json(raw)
        except ValueError as error:
            raise not_notes(where, _reason(error)) from error


def version_of(raw: bytes) -> str:
    """Digits that change with the file's bytes; "none" where there is no file."""
    return hashlib.sha256(raw).hexdigest()[:_VERSION_DIGITS] if raw else "none"


def not_notes(where: str, reason: str) -> UnsupportedVersion:
    """The error for a file that has the name of notes and is something else."""
    return UnsupportedVersion(
        f"{where}: not notes of format version 1, the only one that this release reads: {reason}; correct {NOTES_FILE} "
        "by hand, move it aside, or use the release that wrote it"
    )


def _reason(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]
