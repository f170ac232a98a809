"""Other tools read the light columns straight from a shard, and everything from an export."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arwkv_store import Sample, cli, create_dataset
from arwkv_store.interchange import export_parquet as export
from store_examples import example_dataset_info, example_samples, write_example_dataset


@pytest.fixture
def shard(tmp_path: Path) -> tuple[Path, list[Sample]]:
    return tmp_path / "data/shards/part-000000.arrow", write_example_dataset(tmp_path / "data")[:4]


def _assert_light_columns(rows: list[dict[str, Any]], samples: list[Sample]) -> None:
    for row, sample in zip(rows, samples, strict=True):
        assert (row["sample_id"], row["n_tokens"]) == (sample.sample_id, len(sample.tokens))
        assert list(row["tokens"]) == sample.tokens.tolist()
        assert list(row["loss_mask"]) == sample.loss_mask.tolist()
        assert row["source"] == sample.source
        assert sample.entropy is not None
        assert row["mean_entropy"] == pytest.approx(sample.entropy.mean(), rel=1e-6)


def test_polars_reads_a_shard(shard: tuple[Path, list[Sample]]) -> None:
    polars = pytest.importorskip("polars")
    _assert_light_columns(polars.read_ipc(shard[0]).to_dicts(), shard[1])


def test_pandas_reads_a_shard(shard: tuple[Path, list[Sample]]) -> None:
    pandas = pytest.importorskip("pandas")
    _assert_light_columns(pandas.read_feather(shard[0]).to_dict("records"), shard[1])


def test_duckdb_queries_a_shard(shard: tuple[Path, list[Sample]]) -> None:
    duckdb = pytest.importorskip("duckdb")
    with pa.memory_map(str(shard[0])) as file:
        rows = pa.ipc.open_file(file).read_all()
        with duckdb.connect() as connection:
            connection.register("rows", rows)
            answer = connection.sql("select * exclude (logits, token_stats) from rows order by sample_id")
            _assert_light_columns(answer.to_arrow_table().to_pylist(), shard[1])
            total = connection.execute("select sum(len(tokens)) from rows").fetchone()
    assert total == (sum(len(sample.tokens) for sample in shard[1]),)


def test_field_metadata_names_each_codec(shard: tuple[Path, list[Sample]]) -> None:
    with pa.memory_map(str(shard[0])) as file:
        schema = pa.ipc.open_file(file).schema
    assert schema.field("logits").metadata[b"codec"] == b"exact"
    assert schema.field("token_stats").metadata[b"shape"] == b"entropy [T] nats, true_logprob [T-1]"
    assert schema.metadata[b"arwkv.format_version"] == b"2"


@pytest.mark.parametrize("capture", [{}, {"logits": "adaptive", "top_p": 0.9}])
def test_datasets_loads_an_export(
    tmp_path: Path,
    capture: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    datasets = pytest.importorskip("datasets")
    written = write_example_dataset(tmp_path / "data", info=example_dataset_info(**capture))
    command = ["store", "export", str(tmp_path / "data"), "--out", str(tmp_path / "plain"), "--to", "parquet", "--json"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        cli.main()
    files = json.loads(capsys.readouterr().out)["files"]
    assert (end.value.code, len(files)) == (0, 3)
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    for row, sample in zip(loaded, written, strict=True):
        assert row["tokens"] == sample.tokens.tolist()
        assert sample.logits is not None
        assert [len(ids) for ids in row["ids"]] == sample.logits.counts.tolist()
        assert list(itertools.chain(*row["ids"])) == sample.logits.ids.tolist()
        np.testing.assert_array_equal(np.float32([*itertools.chain(*row["logprobs"])]), sample.logits.logprobs)
        np.testing.assert_array_equal(np.float32(row["true_logprob"]), sample.true_logprob)
        np.testing.assert_array_equal(np.float32(row["hidden.attn.001"]), sample.hidden["attn.1"].astype(np.float32))


def test_export_of_samples_of_which_some_have_token_stats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "ROW_GROUP_BYTES", 1)
    samples = example_samples(4)
    samples[:2] = [dataclasses.replace(sample, entropy=None, true_logprob=None) for sample in samples[:2]]
    create_dataset(tmp_path / "data", example_dataset_info()).write_shard(0, samples)
    (path,) = export.export_parquet(str(tmp_path / "data"), tmp_path / "plain")
    rows = pq.read_table(path).to_pylist()
    assert [row["entropy"] is None for row in rows] == [True, True, False, False]
    for row, sample in zip(rows[2:], samples[2:], strict=True):
        assert sample.entropy is not None
        np.testing.assert_array_equal(np.float32(row["entropy"]), sample.entropy)


def test_export_holds_no_more_than_a_row_group_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_example_dataset(tmp_path / "data")
    monkeypatch.setattr(export, "ROW_GROUP_BYTES", 20_000)
    files = [pq.ParquetFile(path) for path in export.export_parquet(str(tmp_path / "data"), tmp_path / "plain")]
    assert [file.metadata.num_rows for file in files] == [4, 4, 2]
    assert [file.num_row_groups for file in files] == [2, 2, 1]
