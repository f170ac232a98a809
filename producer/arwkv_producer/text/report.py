"""The report of a corpus: files that were read, tokens that count, and what was left out and why."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

SHOWN = 3
"""Names that a line of the report spells out."""


@dataclass(frozen=True)
class CorpusReport:
    """The number of documents by outcome. Nothing else was left out."""

    documents: int = 0
    """In this corpus."""
    documents_cut: int = 0
    """Of these, longer than one sample."""
    documents_empty: int = 0
    """Without a single token, or null: left out."""
    documents_duplicate: int = 0
    """The same text as an earlier one: left out."""
    documents_beyond_share: int = 0
    """Left out because another source had no more documents for the proportions."""
    tokens_counted: int = 0
    """Tokens whose prediction counts; a sample's first token is not predicted."""
    turns: Mapping[str, int] = field(default_factory=dict)
    """Of conversations: turns by who speaks."""
    files_read: Sequence[str] = ()
    files_passed_over: Mapping[str, str] = field(default_factory=dict)
    """Files and folders that were found and not read, and why."""

    def left_out(self) -> dict[str, int]:
        """Documents left out by reason."""
        return {
            "empty": self.documents_empty,
            "duplicate": self.documents_duplicate,
            "beyond share": self.documents_beyond_share,
        }

    def to_bytes(self, samples: int, tokens: int) -> bytes:
        """The report as the JSON document next to dataset.json."""
        return json.dumps(asdict(self) | {"samples": samples, "tokens": tokens}, indent=2).encode() + b"\n"

    def lines(self, tokens: int) -> Iterator[str]:
        """Notes for the user, in addition to the numbers of documents and samples."""
        by_role = ", ".join(f"{role} {count:,}" for role, count in self.turns.items())
        share = f"{self.tokens_counted:,} of {tokens:,} tokens count"
        yield f"{share}; turns: {by_role}" if by_role else share
        yield f"files read: {_listed(self.files_read)}"
        if self.files_passed_over:
            yield f"skipped: {_listed([f'{name} ({why})' for name, why in self.files_passed_over.items()])}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
