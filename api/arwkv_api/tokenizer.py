"""Token ids as text, where the dataset's tokenizer is at hand: beside dataset.json, or in the teacher's folder."""

import logging
from functools import lru_cache
from pathlib import Path

from arwkv_api.preview import Pieces
from arwkv_store.schema import DatasetInfo
from arwkv_store.vocabulary import vocabulary_hash

log = logging.getLogger("arwkv_api.tokenizer")

TOKENIZER_FILES = ("tokenizer.json", "tokenizer/tokenizer.json")
LARGEST_BYTES = 256 << 20


def pieces_for(folder: Path, info: DatasetInfo) -> Pieces:
    """What turns a token id of this dataset into text; into None where there is no tokenizer, or no `tokenizers`."""
    teacher = Path(info.teacher.model)
    places = [folder / name for name in TOKENIZER_FILES]
    if teacher.is_absolute():
        places += [teacher / name for name in TOKENIZER_FILES]
    for place in places:
        if place.is_file() and place.stat().st_size <= LARGEST_BYTES:
            text_of = _load(place, place.stat().st_mtime_ns, info.tokenizer.hash)
            if text_of is not None:
                return text_of
    return lambda _token_id: None


@lru_cache(maxsize=4)
def _load(path: Path, _mtime_ns: int, expected_hash: str) -> Pieces | None:
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

    @lru_cache(maxsize=4096)
    def text_of(token_id: int, /) -> str:
        return str(tokenizer.decode([token_id], skip_special_tokens=False))

    return text_of
