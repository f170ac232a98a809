"""Examples of code of your own over shards run as they are written."""

from pathlib import Path

import pytest

from examples_run import run_example
from store_examples import example_dataset_info, write_example_dataset


def test_own_loop_learns_from_shards(tmp_path: Path) -> None:
    write_example_dataset(tmp_path, info=example_dataset_info(samples=8, layers=()))
    told = run_example("own_loop.py", "--shards", str(tmp_path), "--steps", "60")
    assert told["steps"] == 60
    assert told["last_loss"] < 0.8 * told["first_loss"]


def test_polars_and_duckdb_read_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    pytest.importorskip("duckdb")
    samples = write_example_dataset(tmp_path)
    told = run_example("read_shards.py", "--shards", str(tmp_path))
    expected = [
        {"source": sample.source, "tokens": len(sample.tokens), "counted": int(sample.loss_mask.sum())}
        for sample in sorted(samples, key=lambda sample: sample.source)
    ]
    assert told["sources"] == expected
    losses = {s.sample_id: -s.true_logprob[s.loss_mask[1:]].mean() for s in samples if s.true_logprob is not None}
    hardest = sorted(losses, key=lambda sample_id: -losses[sample_id])[:3]
    assert [sample_id for sample_id, _ in told["hardest"]] == hardest
