"""Readable output of the `store` commands, on stdout."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from arwkv_store.commands.verify import Verdict
from arwkv_store.format.statistics import ENTROPY_BIN_NATS, DatasetStats, ShardStats

_BAR_WIDTH = 32
SHOWN_PARTS = 20


def print_datasets(rows: Sequence[Mapping[str, Any]]) -> None:
    """One line per dataset."""
    table = _table("dataset", "teacher", "logits", "hidden states", right=("parts", "samples", "tokens", "size"))
    for row in rows:
        parts = f"{row['parts']} of {row['planned_parts']}"
        numbers = (parts, f"{row['samples']:,}", f"{row['tokens']:,}", size_text(row["size_bytes"]))
        table.add_row(row["name"], row["teacher"], row["logits"], row["hidden_states"], *numbers)
    _print(table)


def print_parts(rows: Sequence[Mapping[str, Any]]) -> None:
    """One line per part, and their sum."""
    table = _table(right=("part", "samples", "tokens", "sample ids", "size", "bytes/token"))
    for row in rows:
        ids = f"{row['first_sample_id']}..{row['last_sample_id']}"
        per_token = f"{row['bytes_per_token']:,.1f}"
        size = size_text(row["size_bytes"])
        table.add_row(str(row["part"]), f"{row['rows']:,}", f"{row['tokens']:,}", ids, size, per_token)
    tokens, total = sum(row["tokens"] for row in rows), sum(row["size_bytes"] for row in rows)
    table.add_section()
    samples = f"{sum(row['rows'] for row in rows):,}"
    table.add_row("all", samples, f"{tokens:,}", "", size_text(total), f"{total / max(tokens, 1):,.1f}")
    _print(table)


def print_info(document: Mapping[str, Any]) -> None:
    """Every setting, grouped as in dataset.json."""
    table = _table("setting", "value")
    for name, value in document.items():
        if isinstance(value, Mapping):
            for inner, entry in value.items():
                table.add_row(f"{name}.{inner}", _shown(entry))
            table.add_section()
        else:
            table.add_row(name, _shown(value))
    _print(table)


def print_stats(stats: ShardStats) -> None:
    """Numbers first, then bytes by column, then the entropy histogram."""
    table = _table("statistic", right=("value",))
    if isinstance(stats, DatasetStats):
        table.add_row("parts", f"{stats.shards} of {stats.parts}")
        table.add_row("size", size_text(stats.size_bytes))
    table.add_row("samples", f"{stats.samples:,}")
    table.add_row("tokens", f"{stats.tokens:,}")
    for name, value in (
        ("teacher perplexity", stats.teacher_perplexity),
        ("teacher negative log-likelihood (nats)", stats.teacher_nll_mean),
        ("mean entropy (nats)", stats.entropy_mean),
        ("mean k", stats.mean_k),
        ("tail mass, mean", stats.tail_mass_mean),
        ("tail mass, median", stats.tail_mass_p50),
        ("tail mass, 99th percentile", stats.tail_mass_p99),
    ):
        if value is not None:
            table.add_row(name, f"{value:.4g}")
    table.add_section()
    for column, size in stats.bytes_per_token.items():
        table.add_row(f"bytes/token, {column}", f"{size:,.2f}")
    if stats.hidden_rms:
        table.add_section()
    for column, rms in stats.hidden_rms.items():
        error = stats.hidden_worst_channel_error.get(column, 0.0)
        table.add_row(f"RMS, {column}", f"{rms:.4g}" + (f" (worst channel error {error:.2g})" if error else ""))
    _print(table)
    _print_entropies(stats)


def print_verdict(uri: str, verdict: Verdict) -> None:
    """One line if nothing is wrong, otherwise one line per problem."""
    console = Console(highlight=False, soft_wrap=True)
    checked = f"{verdict.parts:,} parts, {verdict.tokens:,} tokens, {size_text(verdict.size_bytes)}"
    console.print(f"{uri}: {checked} verified, {len(verdict.damaged)} damaged", markup=False)
    for part, message in verdict.damaged.items():
        aside = " [set aside: make it again]" if part in verdict.set_aside else ""
        console.print(f"  part {part}: {message}{aside}", markup=False)
    for part, message in verdict.newer.items():
        console.print(f"  part {part}: {message}", markup=False)
    if verdict.missing:
        missing, planned = len(verdict.missing), len(verdict.missing) + verdict.parts
        console.print(
            f"  {missing:,} of {planned:,} planned parts are not committed: {_some(verdict.missing)}", markup=False
        )
    if verdict.unclaimed:
        names = _some(verdict.unclaimed)
        console.print(f"  without a manifest, replaced when their part is made: {names}", markup=False)


def _some(things: Sequence[object]) -> str:
    return ", ".join(map(str, things[:SHOWN_PARTS])) + (", …" if things[SHOWN_PARTS:] else "")


def size_text(size_bytes: int) -> str:
    """Bytes in the largest decimal unit that leaves a number above one."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


def _print_entropies(stats: ShardStats) -> None:
    if not stats.entropy_histogram:
        return
    table = _table("entropy (nats)", "", right=("positions",))
    largest = max(stats.entropy_histogram)
    per_row = 4
    for first in range(0, len(stats.entropy_histogram), per_row):
        count = sum(stats.entropy_histogram[first : first + per_row])
        low = first * ENTROPY_BIN_NATS
        bar = "█" * round(_BAR_WIDTH * count / max(largest * per_row, 1))
        table.add_row(f"{low:.0f} to {low + per_row * ENTROPY_BIN_NATS:.0f}", bar, f"{count:,}")
    _print(table)


def _table(*left: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right")
    return table


def _print(table: Table) -> None:
    Console(highlight=False).print(table)


def _shown(value: object) -> str:
    return "-" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
