"""The text that a command names: its sources, what is recorded of them, and what is reported."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from arwkv_producer.config import Text
from arwkv_producer.text.report import CorpusReport
from arwkv_producer.text.sources import DataFile, Share, Source, find_shares, printable
from arwkv_store.errors import UsageError
from arwkv_store.places.answer_file import written_by


def shares_of(config: Text, data: Sequence[str]) -> list[Share]:
    """The sources of `--data`. Raises NotFound, and UsageError if `--strict` refuses them."""
    shares = find_shares(data, config.split)
    passed_over = [passed for share in shares for passed in share.passed_over]
    if config.strict and passed_over:
        first = passed_over[0]
        raise UsageError(
            f"--strict: {len(passed_over)} files or folders would be skipped, first {first.name} ({first.reason}); "
            "name the files to read, or leave --strict out"
        )
    return shares


def field_of(config: Text) -> str:
    """The field that holds a document."""
    return config.field or ("messages" if config.chat else "text")


def with_files(report: CorpusReport, shares: Sequence[Share]) -> CorpusReport:
    """The report with the names of the files that were read and skipped."""
    files = [source.label for share in shares for source in share.sources]
    passed_over = {passed.name: passed.reason for share in shares for passed in share.passed_over}
    return replace(report, files_read=files, files_passed_over=passed_over)


def require_text(config: Text, data: Sequence[str], shares: Sequence[Share], report: CorpusReport, tokens: int) -> None:
    """Raise UsageError if there are no tokens, or none that counts in the loss."""
    if not tokens:
        sources = sum(len(share.sources) for share in shares)
        raise UsageError(f"--data {' '.join(data)}: no text in {sources} sources; name sources that contain text")
    if not report.tokens_counted:
        told = "; ".join(report.lines(tokens))
        way_out = "replies are turns of the role assistant" if config.chat else "documents need two tokens or more"
        raise UsageError(f"--data {' '.join(data)}: no token counts ({told}); {way_out}")


def template_hash(tokenizer: Any) -> str:
    """16 digits that stand for the tokenizer's chat template."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16]


def described(config: Text, shares: Sequence[Share], tokenizer: Any) -> str:
    """The text in a few words."""
    sources = [source for share in shares for source in share.sources]
    names = [source.label + author(source) for source in sources]
    words = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if len(shares) > 1:
        words += f"; shares {weights_of(shares)}"
    if config.held_out:
        words += f"; held out {config.held_out}"
    if config.chat:
        words += f"; chat template {template_hash(tokenizer)}"
    return printable(words)


def author(source: Source) -> str:
    """The checkpoint that wrote a file, where it is one of answers: the lineage of rounds on a student's own text."""
    found = written_by(Path(source.path)) if isinstance(source, DataFile) and "://" not in source.path else None
    return f" (written by {found})" if found else ""


def weights_of(shares: Sequence[Share]) -> str:
    """The names of several shares and their weights."""
    return ", ".join(f"{Path(share.name).name} {share.weight:g}" for share in shares)


def print_report(out: str, report: CorpusReport, max_length: int, samples: int, tokens: int, shards: int) -> None:
    """Print on stderr what was read, split and left out."""
    notes = [
        f", {count:,} {what}"
        for count, what in (
            (report.documents_cut, f"longer than {max_length} tokens cut"),
            (report.documents_empty, "empty or null left out"),
            (report.documents_duplicate, "duplicates left out"),
            (report.documents_beyond_share, "beyond their source's share left out"),
        )
        if count
    ]
    print(
        f"{out}: {report.documents:,} documents{''.join(notes)}: {samples:,} samples, "
        f"{tokens:,} tokens in {shards:,} shards",
        *(f"  {line}" for line in report.lines(tokens)),
        sep="\n",
        file=sys.stderr,
    )
