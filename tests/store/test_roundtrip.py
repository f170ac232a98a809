"""What was written is what is read, bit for bit."""

import multiprocessing
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from arwkv_store import Sample, UsageError, create_dataset, open_dataset
from arwkv_store.dataset import reader
from store_examples import (
    assert_same_sample,
    example_dataset_info,
    example_samples,
    read_sample_id,
    write_example_dataset,
)

CAPTURES = {
    "top-k": {},
    "adaptive": {"logits": "adaptive", "top_p": 0.9},
    "no logits": {"logits": "none", "top_k": None},
    "whole vocabulary": {"top_k": 500},
    "boundaries": {"hidden_states": "boundaries"},
    "final": {"hidden_states": "final"},
    "sampled": {"logits": "sampled", "top_k": None, "draws": 50, "logits_codec": "sampled"},
    "sampled, exact": {"logits": "sampled", "top_k": None, "draws": 50},
    "hybrid, exact": {"logits": "hybrid", "draws": 50},
    "raw": {"logits_codec": "none", "hidden_dtype": "none"},
    "no hidden states": {"hidden_states": "none", "layers": ()},
}


@pytest.mark.parametrize("head_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("capture", CAPTURES.values(), ids=CAPTURES)
def test_every_field_comes_back_bit_for_bit(tmp_path: Path, capture: dict[str, object], head_dtype: str) -> None:
    written = write_example_dataset(tmp_path, info=example_dataset_info(**capture), head_dtype=head_dtype)
    dataset = open_dataset(tmp_path)
    assert len(dataset) == len(written) == 10
    for read, sample in zip(dataset, written, strict=True):
        assert_same_sample(read, sample)


@pytest.mark.parametrize(
    "capture", [{"logits_codec": "compact"}, {"logits": "hybrid", "draws": 50, "logits_codec": "hybrid"}]
)
def test_rounding_codecs_keep_ids_and_stay_within_an_eighth_of_a_nat(
    tmp_path: Path, capture: dict[str, object]
) -> None:
    written = write_example_dataset(tmp_path, info=example_dataset_info(**capture))
    for read, sample in zip(open_dataset(tmp_path), written, strict=True):
        assert read.logits is not None
        assert sample.logits is not None
        np.testing.assert_array_equal(read.logits.counts, sample.logits.counts)
        np.testing.assert_array_equal(read.logits.ids, sample.logits.ids)
        np.testing.assert_allclose(read.logits.logprobs, sample.logits.logprobs, rtol=0, atol=0.125001)


def test_parts_may_be_written_in_any_order_and_are_read_in_theirs(tmp_path: Path) -> None:
    write_example_dataset(tmp_path, parts=[2, 0])
    assert [manifest.part for manifest in open_dataset(tmp_path).shards] == [0, 2]
    assert [sample.sample_id for sample in open_dataset(tmp_path)] == [0, 1, 2, 3, 8, 9]


def test_index_counts_from_either_end_and_refuses_what_is_outside(tmp_path: Path) -> None:
    write_example_dataset(tmp_path)
    dataset = open_dataset(tmp_path)
    assert dataset[-1].sample_id == 9
    assert [sample.sample_id for sample in dataset[3:6]] == [3, 4, 5]
    for index in (10, -11):
        with pytest.raises(IndexError, match=str(index)):
            dataset[index]


def test_only_the_asked_columns_are_read(tmp_path: Path) -> None:
    write_example_dataset(tmp_path)
    nothing = open_dataset(tmp_path, columns=[])[0]
    assert nothing.logits is None
    assert nothing.entropy is None
    assert not nothing.hidden
    assert len(nothing.tokens) == len(nothing.loss_mask) > 0
    assert list(open_dataset(tmp_path, columns=["hidden.attn.001"])[0].hidden) == ["attn.1"]
    assert sorted(open_dataset(tmp_path, columns=["hidden"])[0].hidden) == ["attn.0", "attn.1"]


def test_rows_are_read_without_the_hidden_file(tmp_path: Path) -> None:
    write_example_dataset(tmp_path)
    for path in tmp_path.glob("shards/*.hidden.arrow"):
        path.unlink()
    assert open_dataset(tmp_path, columns=["logits"])[0].logits is not None


def test_unknown_column_is_refused_with_those_there_are(tmp_path: Path) -> None:
    write_example_dataset(tmp_path)
    with pytest.raises(UsageError, match=r"hidden\.attn\.007.*hidden\.attn\.001"):
        open_dataset(tmp_path, columns=["hidden.attn.007"])


def test_empty_dataset_has_no_samples(tmp_path: Path) -> None:
    create_dataset(tmp_path, example_dataset_info())
    dataset = open_dataset(tmp_path)
    assert (len(dataset), list(dataset.shards), dataset.stats().tokens) == (0, [], 0)


def test_one_token_samples_are_kept(tmp_path: Path) -> None:
    info = example_dataset_info(samples=1)
    written = write_example_dataset(tmp_path, info=info, length=1)
    assert_same_sample(open_dataset(tmp_path)[0], written[0])


def test_positions_without_entries_are_kept(tmp_path: Path) -> None:
    info = example_dataset_info(samples=1)
    (sample,) = example_samples(1, info=info, length=6)
    assert sample.logits is not None
    counts = np.array([8, 0, 8, 8, 0, 8], np.int32)
    kept = np.repeat(counts > 0, 8)
    logits = type(sample.logits)(
        counts, sample.logits.ids[kept], sample.logits.logprobs[kept], sample.logits.tail_logprob
    )
    changed = Sample(**{**sample.__dict__, "logits": logits})
    create_dataset(tmp_path, info).write_shard(0, [changed])
    assert_same_sample(open_dataset(tmp_path)[0], changed)


def test_pickled_dataset_reads_the_same(tmp_path: Path) -> None:
    written = write_example_dataset(tmp_path)
    dataset = open_dataset(tmp_path)
    assert_same_sample(dataset[3], written[3])
    assert_same_sample(pickle.loads(pickle.dumps(dataset))[3], written[3])


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_worker_processes_read_the_same(tmp_path: Path, method: str) -> None:
    write_example_dataset(tmp_path)
    dataset = open_dataset(tmp_path)
    expected = [dataset[i].sample_id for i in range(10)]
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(read_sample_id, [(dataset, i) for i in range(10)]) == expected


def test_threads_may_share_a_dataset_of_more_parts_than_stay_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MAX_OPEN_SHARDS", 2)
    written = write_example_dataset(tmp_path, info=example_dataset_info(samples=30))
    dataset = open_dataset(tmp_path)
    asked = random.Random(0).choices(range(30), k=1200)
    with ThreadPoolExecutor(8) as pool:
        for at, read in zip(asked, pool.map(dataset.__getitem__, asked), strict=True):
            assert_same_sample(read, written[at])
