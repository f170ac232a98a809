"""Shards of the tiny teacher, made once a session."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

if "HF_DATASETS_CACHE" not in os.environ:
    os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="arwkv-datasets-")
    atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny_shards(tiny_teacher: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 samples of at most 48 tokens: attention outputs of all layers, top-16 logits with tail and statistics."""
    from teacher_shards import documents, make_shards

    out = tmp_path_factory.mktemp("shards") / "tiny"
    return make_shards(tiny_teacher, documents(tiny_corpus), out, max_length=48, limit=24)


@pytest.fixture(scope="session")
def tiny_boundary_shards(tiny_teacher: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same samples with the residual stream entering each layer instead."""
    from teacher_shards import documents, make_shards

    out = tmp_path_factory.mktemp("shards") / "boundaries"
    return make_shards(tiny_teacher, documents(tiny_corpus), out, max_length=48, limit=24, hidden="boundaries")


@pytest.fixture(scope="session")
def tiny_final_shards(tiny_teacher: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same samples with the final hidden states and no logits."""
    from teacher_shards import documents, make_shards

    out = tmp_path_factory.mktemp("shards") / "final"
    return make_shards(
        tiny_teacher, documents(tiny_corpus), out, max_length=48, limit=24, hidden="final", logits="none"
    )
