"""Samples as torch tensors."""

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from arwkv_store import open_dataset
from store_examples import example_dataset_info, write_example_dataset

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("codecs", [{}, {"logits_codec": "none", "hidden_dtype": "none"}], ids=["packed", "mapped"])
def test_a_sample_becomes_tensors_of_the_same_values(tmp_path: Path, codecs: dict[str, str]) -> None:
    write_example_dataset(tmp_path, info=example_dataset_info(**codecs))
    sample = open_dataset(tmp_path)[1]
    tensors = sample.to_torch()
    assert sample.logits is not None
    assert tensors["tokens"].tolist() == sample.tokens.tolist()
    assert tensors["loss_mask"].tolist() == sample.loss_mask.tolist()
    assert tensors["ids"].dtype == torch.int64
    for name in ("counts", "ids", "logprobs", "tail_logprob"):
        np.testing.assert_array_equal(tensors[name].numpy(), getattr(sample.logits, name))
    assert tensors["attn.1"].dtype == torch.bfloat16
    same = tensors["attn.1"].view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(same, sample.hidden["attn.1"])


def test_what_was_not_read_is_left_out(tmp_path: Path) -> None:
    write_example_dataset(tmp_path)
    assert set(open_dataset(tmp_path, columns=[])[0].to_torch()) == {"tokens", "loss_mask"}


def test_the_store_reads_without_torch(tmp_path: Path) -> None:
    write_example_dataset(tmp_path)
    code = f"import sys, arwkv_store; arwkv_store.open_dataset({str(tmp_path)!r})[0]; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
