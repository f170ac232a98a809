"""Documents as token ids and loss masks, a batch at a time, with the teacher's own tokenizer."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from arwkv_producer.text.conversations import Document
from arwkv_store.text.chat_template import Span


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenized document, without its text."""

    source: str
    ids: NDArray[np.int32]
    """[T] token ids."""
    mask: NDArray[np.bool_]
    """[T] whether predicting the token counts."""
    digest: bytes
    """xxh3-128 of the text (of a preference pair: of the whole pair)."""
    is_chosen: bool = False
    """Whether the pair's other half comes next."""
    roles: tuple[str, ...] = ()

    @property
    def key(self) -> bytes:
        """The same for documents of which only one is kept: the digest, and which half of a pair it is."""
        return self.digest + b"\1" * self.is_chosen


def digest_of(document: Document) -> bytes:
    """16 bytes that stand for the document's text."""
    return xxhash.xxh3_128_digest((document.pair or document.text).encode("utf-8", "surrogatepass"))


def encode(documents: Sequence[Document], tokenizer: Any, *, special_tokens: bool) -> Iterator[Encoded]:
    """The documents in order, in one call of the tokenizer: of `tokenizers`, or of transformers."""
    partly = any(document.counted is not None for document in documents)
    all_ids, all_offsets = _called(tokenizer, [document.text for document in documents], special_tokens, partly)
    for document, ids_of_one, offsets in zip(documents, all_ids, all_offsets, strict=True):
        ids = np.asarray(ids_of_one, dtype=np.int32)
        mask = np.ones(len(ids), np.bool_) if document.counted is None else _counted_tokens(offsets, document.counted)
        yield Encoded(document.source, ids, mask, digest_of(document), document.is_chosen, document.roles)


def _called(
    tokenizer: Any, texts: list[str], special_tokens: bool, partly: bool
) -> tuple[Iterable[list[int]], Iterable[Sequence[Span]]]:
    """Each text's ids, and its tokens' characters if they are wanted."""
    if hasattr(tokenizer, "encode_batch_fast"):
        call = tokenizer.encode_batch if partly else tokenizer.encode_batch_fast  # which does not count characters
        encodings = call(texts, add_special_tokens=special_tokens)
        ids = (encoding.ids for encoding in encodings)
        return ids, (encoding.offsets for encoding in encodings) if partly else repeat((), len(texts))
    # verbose=False: that a document is longer than the model's context is no news here.
    encoded = tokenizer(
        texts,
        add_special_tokens=special_tokens,
        return_attention_mask=False,
        return_offsets_mapping=partly,
        verbose=False,
    )
    return encoded["input_ids"], encoded["offset_mapping"] if partly else repeat((), len(texts))


def _counted_tokens(offsets: Sequence[Span], counted: Sequence[Span]) -> NDArray[np.bool_]:
    """[T] whether a token holds a counted character."""
    bounds = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    mask = np.zeros(len(bounds), np.bool_)
    for first, end in counted:
        mask |= (bounds[:, 0] < end) & (bounds[:, 1] > first)
    return mask
