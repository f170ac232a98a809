"""Shards in which no position counts teach nothing, and are refused before a run folder is made."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arwkv_store import create_dataset, open_dataset
from arwkv_store.errors import UsageError
from arwkv_student.data.shards import open_shard_sets, require_counted
from arwkv_student.settings import TrainSettings
from arwkv_student.training.pipeline import train


def test_shards_in_which_nothing_counts_are_refused(tiny_shards: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    source = open_dataset(str(tiny_shards))
    writer = create_dataset(tmp_path / "masked", source.info)
    size = source.info.corpus.samples_per_part
    for part in range(source.info.corpus.parts):
        samples = [source[index] for index in range(part * size, min((part + 1) * size, len(source)))]
        writer.write_shard(part, [replace(sample, loss_mask=np.zeros_like(sample.loss_mask)) for sample in samples])
    asked = TrainSettings(shards=(str(tmp_path / "masked"),), base=str(tiny_teacher), out=tmp_path / "run", head_dim=32)
    for stage in ("distill", "auto"):
        with pytest.raises(UsageError, match=r"masked: every loss mask is False, so no position counts"):
            train(replace(asked, stage=stage))
    assert not (tmp_path / "run").exists()
    require_counted(*open_shard_sets([str(tiny_shards)], None))
