"""How every benchmark says what it measured: Markdown tables on stdout, and the same rows as JSON."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def print_table(title: str, rows: Rows) -> None:
    """One Markdown table; a row may lack columns that others have."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    print(f"{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(shown(row.get(column)) for column in columns)} |")
    print(flush=True)


def shown(value: object) -> str:
    """Four digits of a float, everything of an integer, nothing for None."""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value)


def write_json(path: Path | None, results: Mapping[str, Any]) -> None:
    """The results as one document, where a path is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=2) + "\n")


def race(contestants: Mapping[str, Callable[[], object]], rounds: int = 7) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            begin = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - begin)
    return times


def ratio(slow: list[float], fast: list[float]) -> float:
    """The median over rounds of how many times longer `slow` took."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))
