"""The tokenizer beside the dataset, as whoever shows samples as text looks for it."""

import json
from pathlib import Path

from transformers import AutoTokenizer

from arwkv_api.tokenizer import pieces_for
from producer_captures import Captures


def test_the_index_service_shows_captured_samples_as_text(captures: Captures, tiny_corpus: Path) -> None:
    dataset = captures.open("base")
    text_of = pieces_for(captures.folder / "base", dataset.info)
    shown = "".join(text_of(int(token)) or "" for token in dataset[0].tokens)
    assert json.loads(tiny_corpus.read_text().splitlines()[0])["text"].startswith(shown)
    assert len(shown) > 50


def test_the_folder_is_a_tokenizer_for_transformers(captures: Captures) -> None:
    folder = captures.folder / "base"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == "<|endoftext|>"
    assert str(captures.folder.parent) not in (folder / "tokenizer_config.json").read_text()
