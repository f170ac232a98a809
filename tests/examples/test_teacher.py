"""The demo's teacher, trained for some seconds at a tiny size."""

import json
from pathlib import Path
from random import Random

import pytest

from examples_run import end_example, examples_importable

SMALL = ["--steps", "60", "--hidden-size", "64", "--layers", "1", "--vocab-size", "400", "--context", "32"]


@pytest.fixture(scope="module")
def some_text(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path) -> str:
    folder = tmp_path_factory.mktemp("text")
    for i, line in enumerate(tiny_corpus.read_text().splitlines()):
        for copy in range(4):
            (folder / f"{i}-{copy}.txt").write_text(json.loads(line)["text"])
    return f"{folder}/**/*.txt"


def test_teacher_is_a_hugging_face_checkpoint_and_is_cached(tmp_path: Path, some_text: str) -> None:
    words = ["--out", str(tmp_path), "--text", some_text, *SMALL, "--json"]
    first = end_example("teacher.py", *words)
    assert first.code == 0, first.stderr
    summary = json.loads(first.stdout)
    assert summary["heldout_perplexity"] < 300
    weights = (tmp_path / "model.safetensors").stat().st_mtime_ns

    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert model.config.model_type == "qwen2"
    assert model.config.vocab_size == 448  # the head's rows, padded past the tokenizer's 400
    assert tokenizer.decode(tokenizer("def f(x):")["input_ids"]) == "def f(x):"
    # The ids that the model was trained on are those that AutoTokenizer gives: text is split in the same way.
    trained_with = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "class A:\n    def f(self):\n        return 12345, 'b' * 2\n"
    assert tokenizer(text)["input_ids"] == trained_with.encode(text).ids

    again = end_example("teacher.py", *words)
    assert json.loads(again.stdout) == summary
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == weights


def test_text_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    done = end_example("teacher.py", "--out", str(tmp_path), "--text", f"{tmp_path}/*.none")
    assert done.code == 2
    assert done.stderr.count("\n") == 1
    assert "name a glob" in done.stderr


def test_bigram_perplexity_of_a_deterministic_text_is_near_one() -> None:
    with examples_importable():
        from teacher import bigram_perplexity
    assert bigram_perplexity([0, 1, 2] * 500, [[0, 1, 2] * 50], 3) < 1.02
    draw = Random(0).choices(range(8), k=4000)
    assert 7.5 < bigram_perplexity(draw[:2000], [draw[2000:]], 8) < 9
