"""A record of a corpus: one line, row or file, which knows where it came from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arwkv_store.errors import UsageError
from arwkv_store.text.json_lines import require_characters
from arwkv_store.text.turns import FIELDS


@dataclass(frozen=True)
class Record:
    """One line, row or file: its fields, and where it stands (`file.jsonl:12`)."""

    fields: Mapping[str, Any]
    source: str
    where: str
    """The same for an error: with the whole path."""

    def has(self, *fields: str) -> bool:
        """Whether all of these fields are there."""
        return set(fields) <= self.fields.keys()

    def text(self, field: str) -> str:
        """The string in a field. Raises UsageError naming the record where there is none, or it cannot be read."""
        value = self.value(field)
        if not isinstance(value, str):
            way_out = "read conversations with --chat" if isinstance(value, list) else "name another with --field"
            raise UsageError(f"{self.where}: field {field!r} is {type(value).__name__}, not a string; {way_out}")
        return require_characters(value, self.where)

    def value(self, field: str) -> Any:
        """What is in a field. Raises UsageError naming the record where it has no such field."""
        if field not in self.fields:
            is_chat = any(name in self.fields for name in FIELDS)
            way_out = "read conversations with --chat" if is_chat else "name another with --field"
            raise UsageError(f"{self.where}: no field {field!r} (it has: {', '.join(self.fields)}); {way_out}")
        return self.fields[field]
