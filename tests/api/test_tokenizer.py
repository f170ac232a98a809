"""Tokens as text where they stand: spaces kept, characters whole, whatever the tokenizer splits."""

import json
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models

from arwkv_api.views.tokenizer import TokenizerDecoder

sys.path.insert(0, str(Path(__file__).parents[2] / "api"))
import sample_dataset

TEXT = "caf\u00e9 \u4f60\u597d \U0001f642!"


@pytest.fixture
def bytewise() -> TokenizerDecoder:
    """A byte-level tokenizer: each token is one byte."""
    vocabulary = {character: token_id for token_id, character in enumerate(sample_dataset.byte_characters())}
    return TokenizerDecoder(Tokenizer.from_str(json.dumps(sample_dataset.tokenizer(vocabulary))))


@pytest.fixture
def sentencewise() -> TokenizerDecoder:
    """A SentencePiece-like tokenizer, whose pieces carry the space before them, and which falls back to bytes."""
    words = ["\u2581the", "\u2581cat", "s", "\u2581sat", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return TokenizerDecoder(tokenizer)


def test_characters_of_several_bytes_come_whole(bytewise: TokenizerDecoder) -> None:
    ids = list(TEXT.encode())
    texts = [text for text, _ in bytewise.follow(ids)]
    assert "".join(texts) == TEXT
    assert [text for text in texts if text] == list(TEXT)
    assert "\ufffd" not in "".join(texts)


def test_alternative_finishes_the_character_that_was_begun(bytewise: TokenizerDecoder) -> None:
    ids = list("\u4f60".encode())
    unfinished = bytewise.follow(ids)[-1][1]
    assert unfinished == tuple(ids[:2])
    assert bytewise.after(unfinished, ids[2]) == "\u4f60"
    assert bytewise.after((), ord("x")) == "x"


def test_pieces_keep_the_space_before_them(sentencewise: TokenizerDecoder) -> None:
    assert [text for text, _ in sentencewise.follow([0, 1, 2, 3])] == ["the", " cat", "s", " sat"]
    assert [sentencewise.after((), token_id) for token_id in (0, 1, 2)] == [" the", " cat", "s"]


def test_bytes_of_a_fallback_make_whole_characters(sentencewise: TokenizerDecoder) -> None:
    ids = [0, *(4 + byte for byte in "\u597d\U0001f642".encode()), 1]
    texts = [text for text, _ in sentencewise.follow(ids)]
    assert [text for text in texts if text] == ["the", "\u597d", "\U0001f642", " cat"]
