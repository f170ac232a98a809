"""Token ids as text, by the dataset's tokenizer: next to dataset.json, or in the teacher's folder."""

import logging
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from arwkv_api.roots.place import Place
from arwkv_store.format.schema import DatasetInfo
from arwkv_store.format.vocabulary import vocabulary_hash

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger("arwkv_api.tokenizer")

TOKENIZER_FILES = ("tokenizer.json", "tokenizer/tokenizer.json")
LARGEST_BYTES = 256 << 20
KEPT_TEXTS = 1 << 14


def decoder_for(place: Place, info: DatasetInfo) -> "TokenizerDecoder | None":
    """What turns this dataset's token ids into text; None where there is no tokenizer, or no `tokenizers`."""
    teacher = Path(info.teacher.model)
    for path in (
        *(place.tokenizer_file(name, LARGEST_BYTES) for name in TOKENIZER_FILES),
        *(teacher / name for name in TOKENIZER_FILES if teacher.is_absolute()),
    ):
        if path is not None and path.is_file() and path.stat().st_size <= LARGEST_BYTES:
            decoder = _load(path, path.stat().st_mtime_ns, info.tokenizer.hash)
            if decoder is not None:
                return decoder
    return None


class TokenizerDecoder:
    """Reads tokens where they stand: alone, one loses its leading space, or is a part of a character."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._anchor = self._some_word()
        self._anchor_text = self._decode(self._anchor)
        self.after = lru_cache(maxsize=KEPT_TEXTS)(self._after)

    def follow(self, ids: Sequence[int]) -> list[tuple[str, tuple[int, ...]]]:
        """For each id of a stretch the text that it adds, and the ids before it that had not made a character yet."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=False)
        followed: list[tuple[str, tuple[int, ...]]] = []
        unfinished: tuple[int, ...] = ()
        for token_id in ids:
            text = stream.step(self._tokenizer, token_id)
            followed.append((text or "", unfinished))
            unfinished = (*unfinished, token_id) if text is None else ()
        return followed

    def _after(self, unfinished: tuple[int, ...], token_id: int) -> str:
        """The text that `token_id` would add in the middle of a text, after ids that have not made a character yet."""
        return self._decode([*self._anchor, *unfinished, token_id]).removeprefix(self._anchor_text)

    def _some_word(self) -> list[int]:
        """A token of plain letters to stand before others."""
        plain = (i for i in range(self._tokenizer.get_vocab_size()) if self._decode([i]).strip().isalpha())
        return list(islice(plain, 1))

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


@lru_cache(maxsize=4)
def _load(path: Path, _mtime_ns: int, expected_hash: str) -> TokenizerDecoder | None:
    """The file's tokenizer, or None where it is another one than the dataset's or cannot be loaded."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001  # the package raises bare Exception for a file it cannot read
        log.warning("%s: %s; samples are shown without text", path, error)
        return None
    if vocabulary_hash(tokenizer.get_vocab()) != expected_hash:
        return None
    return TokenizerDecoder(tokenizer)
