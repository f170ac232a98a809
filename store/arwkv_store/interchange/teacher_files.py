"""What a capture of others does not say of its teacher, from the teacher's own files; its weights are not read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arwkv_store.errors import NotFound, UsageError
from arwkv_store.format.layout import TOKENIZER_FILES
from arwkv_store.format.model_files import read_json
from arwkv_store.format.schema import TeacherInfo, TokenizerInfo
from arwkv_store.format.vocabulary import vocabulary_hash


@dataclass(frozen=True)
class TeacherFiles:
    """The identity of a teacher, and its tokenizer's files."""

    teacher: TeacherInfo
    tokenizer: TokenizerInfo
    vocab_size_padded: int
    beside: Mapping[str, bytes]


def teacher_files(name: str) -> TeacherFiles:
    """Read config.json and tokenizer.json of a folder or a Hub name (`name@revision`; a bare name means Qwen/name).

    Raises NotFound, UsageError if a file is not whole or a package is missing.
    """
    folder = Path(name) if Path(name).is_dir() else _from_hub(name)
    for file in ("config.json", "tokenizer.json"):
        if not (folder / file).is_file():
            raise NotFound(f"--teacher {name}: no {file} in {folder}; name the teacher's folder or Hub name")
    config = read_json(f"--teacher {name}", folder / "config.json")
    text: Mapping[str, Any] = config.get("text_config") or config
    vocabulary = _vocabulary(name, folder / "tokenizer.json")
    vocab_size = max(vocabulary.values()) + 1
    try:
        teacher = TeacherInfo(
            model=name.partition("@")[0],
            revision=folder.name if folder.parent.name == "snapshots" else None,
            model_type=str(config["model_type"]),
            hidden_size=text["hidden_size"],
            num_hidden_layers=text["num_hidden_layers"],
            dtype=str(text.get("dtype") or text.get("torch_dtype") or "unknown"),
        )
    except KeyError as error:
        raise UsageError(f"--teacher {name}: config.json has no {error}; name a causal language model") from error
    return TeacherFiles(
        teacher,
        TokenizerInfo(hash=vocabulary_hash(vocabulary), vocab_size=vocab_size),
        max(int(text.get("vocab_size", vocab_size)), vocab_size),
        {file: (folder / file).read_bytes() for file in TOKENIZER_FILES if (folder / file).is_file()},
    )


def _vocabulary(name: str, path: Path) -> dict[str, int]:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UsageError('store import reads the teacher\'s tokenizer with "pip install tokenizers"') from error
    try:
        vocabulary: dict[str, int] = Tokenizer.from_file(str(path)).get_vocab()
    except Exception as error:  # the package raises bare Exception for a file it cannot read
        raise UsageError(f"--teacher {name}: {path}: {error}; restore the file from the model's source") from error
    return vocabulary


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise NotFound(f'--teacher {name}: no such folder; for Hub names, "pip install huggingface_hub"') from error
    repository, _, revision = name.partition("@")
    repository = repository if "/" in repository else f"Qwen/{repository}"
    try:
        patterns = ["config.json", *TOKENIZER_FILES]
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # huggingface_hub's errors are one or the other
        raise NotFound(
            f"--teacher {name}: no such folder, and no {repository} from the Hub; check the name, or the network"
        ) from error
