"""The tokenizer beside the dataset, as whoever shows samples as text looks for it."""

import json
from pathlib import Path

from transformers import AutoTokenizer

from arwkv_api.roots.finding import place_of
from arwkv_api.views.tokenizer import decoder_for
from producer_captures import Captures


def test_the_index_service_shows_captured_samples_as_text(captures: Captures, tiny_corpus: Path) -> None:
    dataset = captures.open("base")
    decoder = decoder_for(place_of(str(captures.folder / "base")), dataset.info)
    assert decoder is not None
    shown = "".join(text for text, _ in decoder.follow(dataset[0].tokens.tolist()))
    assert json.loads(tiny_corpus.read_text().splitlines()[0])["text"].startswith(shown)
    assert len(shown) > 50


def test_the_folder_is_a_tokenizer_for_transformers(captures: Captures) -> None:
    folder = captures.folder / "base"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == "<|endoftext|>"
    assert str(captures.folder.parent) not in (folder / "tokenizer_config.json").read_text()
