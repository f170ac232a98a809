"""Hidden-state codecs: bit for bit, or within a per-channel error that is measured and bounded."""

import dataclasses
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from arwkv_store import UsageError, create_dataset, open_dataset
from arwkv_store.format.codecs import hidden_bf16, hidden_fp8, hidden_int8, hidden_raw
from arwkv_store.format.codecs.frames import BadCell
from arwkv_store.format.codecs.rounding import ChannelError, to_bf16
from store_examples import assert_same_array, example_dataset_info, example_samples, write_example_dataset


def _states(T: int, C: int, massive: float = 1.0) -> NDArray[ml_dtypes.bfloat16]:
    rng = np.random.default_rng((T, C))
    values = rng.standard_normal((T, C)) * rng.lognormal(0, 0.5, C)
    values[:, 0] *= massive
    return values.astype(np.float32).astype(ml_dtypes.bfloat16)


def _through(codec: object, states: NDArray[ml_dtypes.bfloat16]) -> NDArray[ml_dtypes.bfloat16]:
    cell = np.frombuffer(codec.encode(states), np.uint8)  # type: ignore[attr-defined]  # a module
    decoded: NDArray[ml_dtypes.bfloat16] = codec.decode(cell, *states.shape)  # type: ignore[attr-defined]
    return decoded


@pytest.mark.parametrize("codec", [hidden_bf16, hidden_raw])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (64, 96), (513, 65)])
def test_lossless_codecs_give_back_every_bit(codec: object, shape: tuple[int, int]) -> None:
    states = _states(*shape)
    assert_same_array(_through(codec, states), states)


def test_bf16_keeps_every_value_there_is() -> None:
    states = np.arange(65_536, dtype=np.uint16).view(ml_dtypes.bfloat16).reshape(256, 256)
    assert_same_array(_through(hidden_bf16, states), states)


@pytest.mark.parametrize(("codec", "bound"), [(hidden_fp8, 0.04), (hidden_int8, 0.05)])
@pytest.mark.parametrize("shape", [(1, 1), (64, 96), (200, 65)])
def test_lossy_codecs_stay_close_on_every_channel(codec: object, bound: float, shape: tuple[int, int]) -> None:
    states = _states(*shape)
    assert ChannelError.of(states, _through(codec, states)).worst() <= bound


@pytest.mark.parametrize("codec", [hidden_fp8, hidden_int8])
def test_lossy_codecs_keep_zeros(codec: object) -> None:
    states = np.zeros((4, 70), ml_dtypes.bfloat16)
    assert_same_array(_through(codec, states), states)


def test_int8_spends_half_and_fp8_no_more_than_half() -> None:
    states = _states(256, 128)
    exact = states.nbytes
    assert len(hidden_int8.encode(states)) < 0.55 * exact
    assert len(hidden_fp8.encode(states)) < 0.52 * exact
    assert len(hidden_bf16.encode(states)) < 0.75 * exact


def test_rounding_is_to_nearest_even() -> None:
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    assert_same_array(to_bf16(values.copy()), values.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("dtype", ["fp8", "int8"])
def test_manifest_records_the_worst_channel(tmp_path: Path, dtype: str) -> None:
    info = example_dataset_info(hidden_dtype=dtype)
    written = write_example_dataset(tmp_path, info=info)
    dataset = open_dataset(tmp_path)
    errors = dataset.stats().hidden_worst_channel_error
    assert sorted(errors) == ["hidden.attn.000", "hidden.attn.001"]
    assert 0 < max(errors.values()) < 0.1
    seen = sum(
        (ChannelError.of(sample.hidden["attn.0"], dataset[i].hidden["attn.0"]) for i, sample in enumerate(written[:4])),
        ChannelError(np.zeros(32), np.zeros(32)),
    )
    assert dataset.shards[0].stats.hidden_worst_channel_error["hidden.attn.000"] == pytest.approx(seen.worst())


def test_channel_drowned_by_a_massive_neighbour_never_commits(tmp_path: Path) -> None:
    info = example_dataset_info(samples=1, hidden_dtype="int8")
    (sample,) = example_samples(1, info=info)
    hidden = {name: _states(len(sample.tokens), 32, massive=1e5) for name in sample.hidden}
    with pytest.raises(UsageError, match=r"hidden\.attn\.000: a channel's relative error is .*--hidden-dtype bf16"):
        create_dataset(tmp_path, info).write_shard(0, [dataclasses.replace(sample, hidden=hidden)])
    assert not list((tmp_path / "shards").iterdir())


@pytest.mark.parametrize("codec", [hidden_bf16, hidden_fp8, hidden_int8, hidden_raw])
def test_cell_of_another_width_is_refused(codec: object) -> None:
    cell = np.frombuffer(codec.encode(_states(4, 8)), np.uint8)  # type: ignore[attr-defined]  # a module
    with pytest.raises(BadCell):
        codec.decode(cell, 4, 9)  # type: ignore[attr-defined]
