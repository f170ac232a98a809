"""A part's statistics against plain numpy over its samples, and their sum over parts against one big part."""

from pathlib import Path

import numpy as np
import pytest

from arwkv_store import Sample, ShardStats, open_dataset
from arwkv_store.format.statistics import sample_stats
from store_examples import example_dataset_info, example_samples, write_example_dataset


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    folder = tmp_path_factory.mktemp("dataset")
    info = example_dataset_info(samples=12, logits="adaptive", top_p=0.9)
    return folder, write_example_dataset(folder, info=info)


def test_dataset_statistics_are_those_of_its_samples(written: tuple[Path, list[Sample]]) -> None:
    folder, samples = written
    stats = open_dataset(folder).stats()
    entropy = np.concatenate([sample.entropy for sample in samples if sample.entropy is not None])
    counted = [sample.true_logprob[sample.loss_mask[1:]] for sample in samples if sample.true_logprob is not None]
    nll = -np.concatenate(counted).astype(np.float64)
    logits = [sample.logits for sample in samples if sample.logits is not None]
    tail = np.exp(np.concatenate([one.tail_logprob for one in logits]).astype(np.float64))
    assert (stats.shards, stats.parts, stats.samples, stats.nan_count) == (3, 3, 12, 0)
    assert stats.tokens == stats.positions == stats.entropy_positions == len(entropy)
    assert stats.entropy_mean == pytest.approx(entropy.mean(), rel=1e-6)
    assert sum(stats.entropy_histogram) == len(entropy)
    assert stats.entropy_histogram[8] == ((entropy >= 2.0) & (entropy < 2.25)).sum()
    assert stats.mean_k == pytest.approx(np.concatenate([one.counts for one in logits]).mean())
    assert stats.tail_mass_mean == pytest.approx(tail.mean(), rel=1e-6)
    assert stats.tail_mass_p50 == pytest.approx(np.median(tail), rel=0.08)
    assert stats.tail_mass_p99 == pytest.approx(np.quantile(tail, 0.99), rel=0.15)
    assert stats.scored_tokens == len(nll)
    assert stats.teacher_nll_mean == pytest.approx(nll.mean(), rel=1e-6)
    assert stats.teacher_perplexity == pytest.approx(np.exp(nll.mean()), rel=1e-5)
    assert stats.length_histogram == {"32": sum(len(sample.tokens) <= 32 for sample in samples),
                                      "64": sum(len(sample.tokens) > 32 for sample in samples)}  # fmt: skip
    states = np.concatenate([sample.hidden["attn.1"].astype(np.float64) for sample in samples])
    assert stats.hidden_rms["hidden.attn.001"] == pytest.approx(np.sqrt((states**2).mean()), rel=1e-5)
    assert stats.size_bytes == sum(path.stat().st_size for path in folder.glob("shards/*.arrow"))


def test_bytes_by_column_add_up_to_the_rows_file_and_nearly_to_the_hidden_one(
    written: tuple[Path, list[Sample]],
) -> None:
    for manifest in open_dataset(written[0]).shards:
        sizes = manifest.stats.bytes_by_column
        assert sizes["logits"] + sizes["token_stats"] + sizes["rows"] == manifest.files["rows"].size_bytes
        hidden = sizes["hidden.attn.000"] + sizes["hidden.attn.001"]
        assert hidden < manifest.files["hidden"].size_bytes < hidden + 4000


def test_merging_in_any_grouping_gives_the_same() -> None:
    stats = [sample_stats(sample) for sample in example_samples(9)]
    at_once = ShardStats.merged(stats)
    in_groups = ShardStats.merged(
        [ShardStats.merged(stats[:2]), ShardStats.merged(stats[2:7]), ShardStats.merged(stats[7:])]
    )
    assert in_groups.model_dump() == {
        key: pytest.approx(value) if isinstance(value, float | dict) else value
        for key, value in at_once.model_dump().items()
    }


def test_true_tokens_the_teacher_rules_out_do_not_make_the_mean_infinite() -> None:
    (sample,) = example_samples(1)
    assert sample.true_logprob is not None
    ruled_out = sample.true_logprob.copy()
    ruled_out[-1] = -np.inf
    stats = sample_stats(Sample(**{**vars(sample), "true_logprob": ruled_out}))
    assert stats.teacher_nll_mean is not None
    assert np.isfinite(stats.teacher_nll_mean)
    assert stats.scored_tokens == sample.loss_mask[1:].sum() - 1


def test_nothing_captured_has_no_means() -> None:
    stats = ShardStats.merged([])
    assert (stats.tokens, stats.entropy_mean, stats.tail_mass_p50, stats.teacher_perplexity) == (0, None, None, None)
