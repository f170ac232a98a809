"""Shards of the tiny teacher, made once a session."""

import sys
from pathlib import Path

import pytest

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
