"""Datasets that grow, of tokens alone: no heavy column, and a length that is that of the committed parts."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from arwkv_store import create_dataset, open_dataset
from arwkv_store.commands.copy import copy_dataset
from arwkv_store.commands.ls import list_datasets
from arwkv_store.commands.verify import set_aside, verify_dataset
from arwkv_store.errors import ConfigurationDiffers, UsageError
from arwkv_store.interchange.export_parquet import export_parquet
from store_examples import (
    assert_same_sample,
    example_dataset_info,
    example_samples,
    token_samples,
    tokens_info,
    write_tokens,
)
from store_server import served


def test_open_reader_keeps_its_length_and_a_new_one_sees_more(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens", parts=[0])
    shorter = open_dataset(tmp_path / "tokens")
    write_tokens(tmp_path / "tokens")
    longer = open_dataset(tmp_path / "tokens")
    assert (len(shorter), len(longer)) == (4, 8)
    for read, sample in zip(longer, token_samples(0, 8), strict=True):
        assert_same_sample(read, sample)
    assert [sample.sample_id for sample in shorter] == [0, 1, 2, 3]
    assert (longer.stats().shards, longer.stats().parts) == (2, 2)


def test_no_heavy_column_is_written_or_known(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens")
    schema = pa.ipc.open_file(tmp_path / "tokens" / "shards" / "part-000000.arrow").schema
    assert pa.binary() not in schema.types
    with pytest.raises(UsageError, match="not captured"):
        open_dataset(tmp_path / "tokens", columns=["logits"])
    writer = create_dataset(tmp_path / "tokens", tokens_info())
    with pytest.raises(UsageError, match=r"logits are given"):
        writer.write_shard(2, example_samples(4, info=example_dataset_info(layers=())))


def test_commands_know_it(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens")
    rows = list_datasets(str(tmp_path))
    assert rows is not None
    assert (rows[0]["parts"], rows[0]["planned_parts"]) == (2, 2)
    assert [path.name for path in export_parquet(str(tmp_path / "tokens"), tmp_path / "plain")][
        -1
    ] == "part-000001.parquet"
    set_aside(tmp_path / "tokens", 0)
    *_, verdict = verify_dataset(str(tmp_path / "tokens"), deep=True)
    assert (verdict.missing, verdict.parts) == ([0], 1)


def test_texts_are_the_rows_one_after_another(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens")
    dataset = open_dataset(tmp_path / "tokens")
    lengths, tokens, masks = zip(*dataset.texts(), strict=True)
    samples = list(dataset)
    assert np.concatenate(lengths).tolist() == [len(sample.tokens) for sample in samples]
    assert np.array_equal(np.concatenate(tokens), np.concatenate([sample.tokens for sample in samples]))
    assert np.array_equal(np.concatenate(masks), np.concatenate([sample.loss_mask for sample in samples]))


def test_exact_part_refuses_other_samples(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens")
    writer = create_dataset(tmp_path / "tokens", tokens_info())
    writer.write_shard(1, token_samples(4, 4), exact=True)
    with pytest.raises(ConfigurationDiffers, match=r"part-000001.json: holds other samples"):
        writer.write_shard(1, token_samples(0, 4), exact=True)


def test_file_beside_is_replaced_where_it_is_asked(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens")
    writer = create_dataset(tmp_path / "tokens", tokens_info())
    for content in (b"1", b"2"):
        writer.put_beside("corpus.json", content)
        assert open_dataset(tmp_path / "tokens").beside()["corpus.json"] == b"1"
    writer.replace_beside("corpus.json", b"3")
    assert open_dataset(tmp_path / "tokens").beside()["corpus.json"] == b"3"


def test_length_goes_over_http_and_into_a_copy_that_grows(tmp_path: Path) -> None:
    for parts, length in ([0], b'{"lengths": 1}'), ([0, 1], b'{"lengths": 2}'):
        write_tokens(tmp_path / "tokens", parts=parts)
        create_dataset(tmp_path / "tokens", tokens_info()).replace_beside("corpus.json", length)
        with served(tmp_path / "tokens") as service:
            *_, copied = copy_dataset(service.uri, str(tmp_path / "copy"))
        assert copied.parts == 1
        report = open_dataset(tmp_path / "copy").beside()["corpus.json"]
        assert json.loads(report) == json.loads(length)
