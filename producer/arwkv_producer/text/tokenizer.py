"""The teacher's tokenizer: loaded, measured, and copied to the dataset so that its samples can be shown as text."""

import tempfile
from pathlib import Path
from typing import Any

from arwkv_producer.teacher.teacher import Teacher
from arwkv_store.errors import NotFound
from arwkv_store.format.layout import TOKENIZER_FILES


def load_tokenizer(teacher: Teacher) -> Any:
    """The teacher's own tokenizer (transformers). Raises NotFound where the model has none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(teacher.model, revision=teacher.revision)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotFound(
            f"--teacher {teacher.name}: no usable tokenizer ({reason}); put tokenizer.json beside the weights"
        ) from error
    # Without tokenizer files transformers makes up a tokenizer that knows its special tokens only.
    if len(tokenizer.get_vocab()) <= len(tokenizer.get_added_vocab()):
        raise NotFound(f"--teacher {teacher.name}: it has no tokenizer; put tokenizer.json beside the weights")
    return tokenizer


def rust_tokenizer(tokenizer: Any) -> Any:
    """The Rust tokenizer inside a transformers one, which neither truncates nor pads; a tokenizer without one itself.

    It gives the same tokens in less time, and a process that only tokenizes needs no transformers.
    """
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        return tokenizer
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(inner.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def real_vocab_size(tokenizer: Any) -> int:
    """Token ids the tokenizer can name: the highest plus one. Head rows from here on are padding."""
    return int(max(tokenizer.get_vocab().values())) + 1


def tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    """Its files by name, as transformers writes them; none for a tokenizer that has no tokenizer.json."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {name: Path(folder, name).read_bytes() for name in TOKENIZER_FILES if Path(folder, name).is_file()}
    return files if "tokenizer.json" in files else {}
