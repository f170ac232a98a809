"""The demo's texts: budgets in tokens, conversations from docstrings."""

from collections.abc import Iterator
from types import ModuleType

import pytest

from examples_run import examples_importable


@pytest.fixture
def corpus() -> Iterator[ModuleType]:
    with examples_importable():
        import corpus

        yield corpus


def count_words(text: str) -> dict[str, list[str]]:
    return {"input_ids": text.split()}


def test_budget_is_met_by_the_fewest_documents(corpus: ModuleType) -> None:
    documents = [{"text": "one two three"}, {"text": "four five"}, {"text": "six"}]
    assert len(list(corpus.within(3, documents, count_words))) == 1
    assert len(list(corpus.within(4, documents, count_words))) == 2
    assert len(list(corpus.within(99, documents, count_words))) == 3


def test_conversations_are_answered_by_docstrings(corpus: ModuleType) -> None:
    long = "Add two numbers, and say so at such length that the answer is worth a question of its own."
    source = f'def add(a, b=1):\n    """{long}"""\n    return a + b\n\ndef short():\n    """Brief."""\n'
    broken = {"text": "def (", "source": "broken.py"}
    (only,) = corpus.conversations([{"text": source, "source": "sums.py"}, broken])
    assert only["messages"] == [
        {"role": "user", "content": "What does `add(a, b=1)` in sums.py do?"},
        {"role": "assistant", "content": long},
    ]


def test_prose_is_what_installed_packages_say_of_themselves(corpus: ModuleType) -> None:
    both, code = corpus.read_corpus(None, prose=True), corpus.read_corpus(None)
    added = {d["source"] for d in both.train + both.heldout} - {d["source"] for d in code.train + code.heldout}
    assert added
    assert all(source.endswith(".dist-info/METADATA") for source in added)
