"""A dataset's identity decides what is in it; a part is committed once, whole, or not at all."""

import dataclasses
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from arwkv_store import (
    ConfigurationDiffers,
    DatasetInfo,
    NotFound,
    Sample,
    TokenizerInfo,
    UsageError,
    create_dataset,
    open_dataset,
)
from store_examples import assert_same_sample, example_dataset_info, example_samples, write_example_dataset


def test_same_configuration_resumes_with_the_missing_parts(tmp_path: Path) -> None:
    write_example_dataset(tmp_path, parts=[1])
    writer = create_dataset(tmp_path, example_dataset_info())
    assert writer.missing_parts() == [0, 2]
    writer.write_shard(0, example_samples(4))
    assert writer.missing_parts() == [2]


def test_another_command_or_release_may_resume(tmp_path: Path) -> None:
    info = example_dataset_info()
    create_dataset(tmp_path, info)
    later = info.model_copy(update={"command": "again", "versions": {"torch": "9"}, "created_by": "9.9"})
    assert create_dataset(tmp_path, later).info == info


def test_differing_configuration_is_refused_field_by_field(tmp_path: Path) -> None:
    create_dataset(tmp_path, example_dataset_info(top_k=64))
    asked = example_dataset_info(top_k=32, hidden_size=16)
    with pytest.raises(ConfigurationDiffers) as refusal:
        create_dataset(tmp_path, asked)
    assert "capture.top_k: 64 on disk, 32 asked" in str(refusal.value)
    assert "teacher.hidden_size: 32 on disk, 16 asked" in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_committed_part_is_not_written_again(tmp_path: Path) -> None:
    first = write_example_dataset(tmp_path, parts=[0])
    other = example_samples(4, seed=1)
    manifest = create_dataset(tmp_path, example_dataset_info()).write_shard(0, other)
    assert manifest == open_dataset(tmp_path).shards[0]
    assert_same_sample(open_dataset(tmp_path)[0], first[0])


def test_nothing_but_the_committed_files_is_left(tmp_path: Path) -> None:
    write_example_dataset(tmp_path, parts=[0])
    write_example_dataset(tmp_path, parts=[0])
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    data = ["shards/part-000000.arrow", "shards/part-000000.hidden.arrow", "shards/part-000000.json"]
    assert names == ["dataset.json", *data]


def _broken(**changes: object) -> Sample:
    return dataclasses.replace(example_samples(1)[0], **changes)  # type: ignore[arg-type]  # wrong on purpose


def _broken_logits(**changes: object) -> Sample:
    sample = example_samples(1)[0]
    assert sample.logits is not None
    return dataclasses.replace(sample, logits=dataclasses.replace(sample.logits, **changes))  # type: ignore[arg-type]


def _with_nan(values: np.ndarray, value: float = np.nan) -> np.ndarray:
    changed = values.copy()
    changed.reshape(-1)[3] = value
    return changed


EXAMPLE = example_samples(1)[0]
assert EXAMPLE.logits is not None
assert EXAMPLE.entropy is not None
assert EXAMPLE.true_logprob is not None
REFUSED = {
    "NaN log-probability": _broken_logits(logprobs=_with_nan(EXAMPLE.logits.logprobs)),
    "infinite log-probability": _broken_logits(logprobs=_with_nan(EXAMPLE.logits.logprobs, -np.inf)),
    "NaN tail": _broken_logits(tail_logprob=_with_nan(EXAMPLE.logits.tail_logprob)),
    "NaN entropy": _broken(entropy=_with_nan(EXAMPLE.entropy)),
    "NaN true log-probability": _broken(true_logprob=_with_nan(EXAMPLE.true_logprob)),
    "NaN hidden state": _broken(hidden={**EXAMPLE.hidden, "attn.1": _with_nan(EXAMPLE.hidden["attn.1"])}),
    "infinite hidden state": _broken(hidden={**EXAMPLE.hidden, "attn.1": _with_nan(EXAMPLE.hidden["attn.1"], np.inf)}),
    "id outside the vocabulary": _broken_logits(ids=EXAMPLE.logits.ids + 400),
    "negative id": _broken_logits(ids=EXAMPLE.logits.ids - 400),
    "token outside the vocabulary": _broken(tokens=EXAMPLE.tokens + 499),
    "counts that do not add up": _broken_logits(counts=EXAMPLE.logits.counts - 1),
    "more entries than the capture": _broken_logits(
        counts=np.full_like(EXAMPLE.logits.counts, 16),
        ids=EXAMPLE.logits.ids.repeat(2),
        logprobs=EXAMPLE.logits.logprobs.repeat(2),
    ),
    "missing hidden state": _broken(hidden={"attn.0": EXAMPLE.hidden["attn.0"]}),
    "hidden state of another width": _broken(hidden={name: x[:, :7] for name, x in EXAMPLE.hidden.items()}),
    "missing logits": _broken(logits=None),
    "mask of another length": _broken(loss_mask=EXAMPLE.loss_mask[:-1]),
    "no tokens": _broken(tokens=EXAMPLE.tokens[:0]),
    "log-probability above 0": _broken_logits(logprobs=_with_nan(EXAMPLE.logits.logprobs, 3)),
    "tail above 0": _broken_logits(tail_logprob=_with_nan(EXAMPLE.logits.tail_logprob, 5)),
    "true log-probability above 0": _broken(true_logprob=_with_nan(EXAMPLE.true_logprob, 0.01)),
    "negative entropy": _broken(entropy=_with_nan(EXAMPLE.entropy, -5)),
    "entropy of minus infinity": _broken(entropy=_with_nan(EXAMPLE.entropy, -np.inf)),
    "infinite entropy": _broken(entropy=_with_nan(EXAMPLE.entropy, np.inf)),
    "longer than the capture": example_samples(1, length=65)[0],
}


@pytest.mark.parametrize("sample", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trusted_never_commits(tmp_path: Path, sample: Sample) -> None:
    writer = create_dataset(tmp_path, example_dataset_info())
    with pytest.raises(UsageError, match="sample 0"):
        writer.write_shard(0, [sample])
    assert not list((tmp_path / "shards").iterdir())


def test_what_rounding_leaves_is_kept(tmp_path: Path) -> None:
    assert EXAMPLE.logits is not None
    assert EXAMPLE.entropy is not None
    logits = dataclasses.replace(EXAMPLE.logits, logprobs=_with_nan(EXAMPLE.logits.logprobs, 2e-6))
    sample = dataclasses.replace(EXAMPLE, logits=logits, entropy=_with_nan(EXAMPLE.entropy, -1e-6))
    create_dataset(tmp_path, example_dataset_info()).write_shard(0, [sample])
    assert_same_sample(open_dataset(tmp_path)[0], sample)


def test_log_probability_below_the_codes_of_compact_is_refused(tmp_path: Path) -> None:
    assert EXAMPLE.logits is not None
    logits = dataclasses.replace(EXAMPLE.logits, logprobs=_with_nan(EXAMPLE.logits.logprobs, -1000))
    writer = create_dataset(tmp_path, example_dataset_info(logits_codec="compact"))
    with pytest.raises(
        UsageError, match=r"sample 0: logits\.logprobs holds -1000, the lowest value of codec compact is -909"
    ):
        writer.write_shard(0, [dataclasses.replace(EXAMPLE, logits=logits)])


def test_vocabulary_beyond_24_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        TokenizerInfo(hash="0", vocab_size=(1 << 24) + 1)


def test_parts_outside_the_plan_are_refused(tmp_path: Path) -> None:
    writer = create_dataset(tmp_path, example_dataset_info())
    with pytest.raises(UsageError, match=r"part 3: the dataset has parts 0\.\.2"):
        writer.write_shard(3, example_samples(1))
    with pytest.raises(UsageError, match=r"5 samples, a part holds 1\.\.4"):
        writer.write_shard(0, example_samples(5))
    with pytest.raises(UsageError, match="sample 0 follows 1"):
        writer.write_shard(0, example_samples(2)[::-1])


def test_remote_and_unwritable_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can only be read"):
        create_dataset("http://host/v1/datasets/name", example_dataset_info())
    (tmp_path / "file").write_text("")
    with pytest.raises(NotFound, match="file"):
        create_dataset(tmp_path / "file" / "below", example_dataset_info())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_of_racing_processes_exactly_one_commits_and_all_agree(tmp_path: Path) -> None:
    info = example_dataset_info()
    create_dataset(tmp_path, info)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(8)
    answers: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    racers = [context.Process(target=_race, args=(tmp_path, info, seed, barrier, answers)) for seed in range(8)]
    for racer in racers:
        racer.start()
    hashes = {answers.get() for _ in racers}
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0] * 8
    assert hashes == {open_dataset(tmp_path).shards[0].files["rows"].sha256}
    winner = int(open_dataset(tmp_path)[0].source.removeprefix("racer-"))
    for read, written in zip(open_dataset(tmp_path), _racer_samples(winner), strict=True):
        assert_same_sample(read, written)
    assert len(list((tmp_path / "shards").iterdir())) == 3


def _race(folder: Path, info: DatasetInfo, seed: int, barrier: object, answers: object) -> None:
    samples = _racer_samples(seed)
    writer = create_dataset(folder, info)
    barrier.wait()  # type: ignore[attr-defined]  # multiprocessing's barrier
    answers.put(writer.write_shard(0, samples).files["rows"].sha256)  # type: ignore[attr-defined]


def _racer_samples(seed: int) -> list[Sample]:
    return [dataclasses.replace(sample, source=f"racer-{seed}") for sample in example_samples(4, seed=seed)]
