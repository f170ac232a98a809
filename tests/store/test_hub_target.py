"""Writing into a repository on the Hub."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from arwkv_store import open_dataset
from store_examples import assert_same_sample, write_example_dataset
from store_hub import hub_of

WRITE = """
import sys
sys.path.insert(0, sys.argv[1])
from arwkv_store import create_dataset
from arwkv_store.commands.copy import copy_dataset
from store_examples import example_dataset_info, example_samples
list(copy_dataset(sys.argv[2], "hf://datasets/user/name/copied"))
one, other = (create_dataset("hf://datasets/user/name/made", example_dataset_info()) for _ in range(2))
first = one.write_shard(0, example_samples(4))
assert other.write_shard(0, example_samples(4, seed=1)) == first
"""


def test_copy_is_one_commit_and_so_is_each_part_that_is_made(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    samples = write_example_dataset(tmp_path / "data")
    (tmp_path / "hub").mkdir()
    commits: list[list[str]] = []
    with hub_of(tmp_path / "hub", commits) as endpoint:
        # In a process of its own: the Hub's library takes its endpoint when it is imported.
        command = [sys.executable, "-c", WRITE, str(Path(__file__).parents[1]), str(tmp_path / "data")]
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        writer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert writer.returncode == 0, writer.stderr
    assert [len(files) for files in commits] == [1, 9, 1, 3]
    for read, sample in zip(open_dataset(tmp_path / "hub" / "copied"), samples, strict=True):
        assert_same_sample(read, sample)
    assert_same_sample(open_dataset(tmp_path / "hub" / "made")[0], samples[0])
