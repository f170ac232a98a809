"""A dataset's tokens, masks and statistics in polars and duckdb: shards are Arrow files, and no codec is needed.

Logits and hidden states are compressed cells; `store export --to parquet` writes them as plain lists.
Example: `python examples/read_shards.py --shards ./shards`
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow.dataset

from arwkv_store.commands.command_line import main

LIGHT = ["sample_id", "source", "n_tokens", "tokens", "loss_mask", "mean_entropy", "teacher_nll"]


@dataclass(frozen=True)
class ReadConfig:
    """Show a dataset's sources with polars and its hardest samples with duckdb."""

    shards: Path
    """A dataset's folder."""
    json: bool = False
    """Print one JSON document on stdout."""


def shard_files(folder: Path) -> list[Path]:
    """The rows files of committed parts: a part is there when its manifest is."""
    return [path.with_suffix(".arrow") for path in sorted((folder / "shards").glob("part-*.json"))]


def tokens_by_source(files: list[Path]) -> polars.DataFrame:
    """Tokens, and how many of them count, by source."""
    rows = polars.concat([polars.read_ipc(file, columns=LIGHT) for file in files])
    counted = polars.col("loss_mask").list.sum().sum().alias("counted")
    return rows.group_by("source").agg(polars.col("n_tokens").sum().alias("tokens"), counted).sort("source")


def hardest_samples(files: list[Path], n: int = 3) -> list[tuple[int, float]]:
    """The samples that the teacher predicts worst: (sample_id, nats a token)."""
    rows = pyarrow.dataset.dataset([str(file) for file in files], format="ipc").to_table(columns=LIGHT)
    with duckdb.connect() as connection:
        connection.register("rows", rows)
        query = "select sample_id, teacher_nll from rows order by teacher_nll desc limit ?"
        return connection.execute(query, [n]).fetchall()


def read(config: ReadConfig) -> dict[str, Any]:
    """Show a dataset's sources with polars and its hardest samples with duckdb. Example: see the head of this file."""
    files = shard_files(config.shards)
    sources, hardest = tokens_by_source(files), hardest_samples(files)
    if not config.json:
        print(sources)
        print("\n".join(f"sample {sample_id}: {nll:.2f} nats a token" for sample_id, nll in hardest))
    return {"sources": sources.to_dicts(), "hardest": hardest}


if __name__ == "__main__":
    main("read_shards.py", "Read a dataset's light columns with polars and duckdb.", read)
