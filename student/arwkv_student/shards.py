"""Opening shards for a student, and refusing those that do not fit it."""

from collections.abc import Collection

from arwkv_store import Dataset, DatasetInfo, open_dataset
from arwkv_store.errors import NotFound, UsageError
from arwkv_student.base import BaseCheckpoint


def open_shards(uri: str, columns: Collection[str], *, flag: str = "--shards") -> Dataset:
    """Open a dataset that has committed samples. Raises NotFound where there is none or it is empty."""
    if not uri:
        raise UsageError(f"{flag} is missing; name a dataset folder or http(s)://host/v1/datasets/NAME")
    dataset = open_dataset(uri, columns=columns)
    if not len(dataset):
        raise NotFound(f"{flag} {uri}: no finished shard in it yet; let the producer commit one")
    return dataset


def require_same_tokenizer(base: BaseCheckpoint, info: DatasetInfo, uri: str) -> None:
    """Raise UsageError unless the shards' token ids mean what the base's tokenizer means by them."""
    own = base.tokenizer_hash()
    if own != info.tokenizer.hash:
        raise UsageError(
            f"tokenizer of {base.name} ({own[:18]}…) is not the shards' ({info.tokenizer.hash[:18]}…, teacher "
            f"{info.teacher.model} in {uri}); take a base with the teacher's tokenizer"
        )
    rows = base.config["vocab_size"]
    if rows < info.tokenizer.vocab_size:
        raise UsageError(
            f"base {base.name} has {rows} embedding rows, the shards {info.tokenizer.vocab_size} token ids; "
            "take a base with the teacher's vocabulary"
        )


def require_fitting_hidden_states(base: BaseCheckpoint, info: DatasetInfo, uri: str) -> None:
    """Raise UsageError unless stage align can follow the base's stream in the shards' hidden states."""
    capture, teacher = info.capture, info.teacher
    if capture.hidden_states not in ("attention", "boundaries"):
        raise UsageError(
            f"{uri} holds hidden states {capture.hidden_states!r}; stage align needs --hidden-states attention"
        )
    own = (base.config["hidden_size"], base.config["num_hidden_layers"])
    if own != (teacher.hidden_size, teacher.num_hidden_layers):
        raise UsageError(
            f"base {base.name} has hidden size {own[0]} and {own[1]} layers, the shards' hidden states "
            f"{teacher.hidden_size} and {teacher.num_hidden_layers} (teacher {teacher.model}); "
            "stage align needs the shards of the base itself"
        )
    missing = sorted(set(range(teacher.num_hidden_layers)) - set(capture.layers))
    if missing:
        raise UsageError(
            f"{uri} lacks the hidden states of layers {missing}, without which the stream cannot be followed; "
            "capture with --layers all"
        )


def columns_of(stage: str, info: DatasetInfo) -> list[str]:
    """The heavy columns that a stage reads."""
    if stage == "align":
        kind = "attn" if info.capture.hidden_states == "attention" else "boundary"
        return [f"hidden.{kind}.{layer:03d}" for layer in range(info.teacher.num_hidden_layers)]
    return ["logits"] if info.capture.logits != "none" else ["hidden.final"]
