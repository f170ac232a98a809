"""One definition of "the same tokenizer", for the producer that stores it and the student that checks it."""

import hashlib
import json
from collections.abc import Mapping


def vocabulary_hash(vocabulary: Mapping[str, int]) -> str:
    """The hash in `TokenizerInfo.hash`: sha256 of the token strings and ids (added and special ones too), by id.

    `vocabulary` is `tokenizer.get_vocab()`. Files, versions and chat templates do not enter: token ids mean the same.
    """
    by_id = sorted((token_id, token) for token, token_id in vocabulary.items())
    return "sha256:" + hashlib.sha256(json.dumps(by_id, ensure_ascii=True).encode()).hexdigest()
