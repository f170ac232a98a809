"""Opening shards for a student, and refusing those that do not fit it."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate.utils import broadcast_object_list

from arwkv_store import Dataset, DatasetInfo, open_dataset
from arwkv_store.errors import NotFound, UsageError
from arwkv_store.format.hidden_names import hidden_column
from arwkv_store.format.seal import self_hash
from arwkv_student.bases.checkpoint import BaseCheckpoint
from arwkv_student.bases.tokenizer import tokenizer_hash
from arwkv_student.data.extent import Extent, continued
from arwkv_student.first_process import say_once


def open_shards(uri: str, columns: Collection[str], *, flag: str = "--shards") -> Dataset:
    """Open a dataset that has committed samples. Raises NotFound if there is none or it is empty."""
    if not uri:
        raise UsageError(f"{flag} is missing; name a dataset folder or http(s)://host/v1/datasets/NAME")
    dataset = open_dataset(uri, columns=columns)
    if not len(dataset):
        raise NotFound(f"{flag} {uri}: it holds no finished shard yet; wait for the producer to commit one")
    return dataset


def require_counted(shards: "ShardSet") -> None:
    """Raise UsageError if no position of the shards counts: the loss would always be 0."""
    dataset = shards.open([])
    if not any(dataset[index].loss_mask[1:].any() for index in range(len(dataset))):
        raise UsageError(
            f"--shards {shards.uri}: every loss mask is False, so no position counts; train on other shards"
        )


def require_entropy(dataset: Dataset, uri: str) -> None:
    """Raise UsageError unless the shards hold the teacher's entropy of every position."""
    stats = dataset.stats()
    if stats.entropy_positions < stats.tokens:
        raise UsageError(
            f"--token-weight entropy: {uri} holds the teacher's entropy of {stats.entropy_positions:,} of its "
            f"{stats.tokens:,} tokens; capture with --logits top-k again, or choose --token-weight error"
        )


def require_same_tokenizer(what: str, folder: Path, info: DatasetInfo, uri: str) -> None:
    """Raise UsageError unless the token ids of the shards are the same tokens in the model's folder.

    Tokens that the model has beyond them are named on stderr; they take no part in a loss.
    """
    own, added = tokenizer_hash(what, folder, info.tokenizer.vocab_size)
    if own != info.tokenizer.hash:
        raise UsageError(
            f"tokenizer of {what} ({own[:18]}…) is not the shards' ({info.tokenizer.hash[:18]}…, teacher "
            f"{info.teacher.model} in {uri}); use a model with the teacher's tokenizer"
        )
    if added:
        shown = ", ".join(added[:4]) + (", …" if len(added) > 4 else "")
        say_once(f"{what}: {len(added)} tokens beyond the ids in {uri} ({shown}); they are not trained")
    config = json.loads((folder / "config.json").read_text())
    rows = config.get("text_config", config)["vocab_size"]
    if rows < info.tokenizer.vocab_size:
        raise UsageError(
            f"{what} has {rows} embedding rows, the shards {info.tokenizer.vocab_size} token ids; "
            "use a model with the teacher's vocabulary"
        )


def require_fitting_head(flag: str, head: BaseCheckpoint, info: DatasetInfo, uri: str) -> None:
    """Raise UsageError unless this checkpoint's head gives logits for the final hidden states."""
    teacher, width = info.teacher, head.config["hidden_size"]
    if width != teacher.hidden_size:
        raise UsageError(
            f"head of {head.name} is {width} wide, the final hidden states {teacher.hidden_size}; "
            f"name the teacher {teacher.model} as --teacher-head"
        )
    require_teacher(flag, head, info, uri)


def require_teacher(flag: str, checkpoint: BaseCheckpoint, info: DatasetInfo, uri: str) -> None:
    """Raise UsageError if the shards were captured from other weights; warn if something else may differ."""
    teacher, own = info.teacher, f"{flag} {checkpoint.name}"
    if teacher.weights_hash is not None:
        weights, _, config = teacher.weights_hash.partition("-")  # datasets of the first release have no second part
        if checkpoint.weights_hash != weights:
            raise UsageError(
                f"{own}: weights {checkpoint.weights_hash}, but the hidden states in {uri} are those of "
                f"{teacher.model}, weights {weights}; name that checkpoint, or capture shards with this one"
            )
        if config and checkpoint.config_hash != config:
            say_once(
                f"{own}: its config.json differs from that of the capture in {uri}; check that both are the same model"
            )
    elif teacher.revision is not None and checkpoint.revision is not None:
        if checkpoint.revision != teacher.revision:
            raise UsageError(
                f"{own}: revision {checkpoint.revision}, but the hidden states in {uri} are those of "
                f"{teacher.model}@{teacher.revision}; name that revision"
            )
    else:
        recorded = teacher.model + (f"@{teacher.revision}" if teacher.revision else "")
        say_once(
            f"{own}: cannot be compared with {recorded}, which made the hidden states in {uri}; "
            "check that they are the same model"
        )


def require_fitting_hidden_states(base: BaseCheckpoint, info: DatasetInfo, uri: str, mixed: Sequence[int]) -> None:
    """Raise UsageError unless stage align can follow the base's stream to the layers `mixed`."""
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
    form, own_form = teacher.block_form or "pre-norm", base.architecture.norms.form
    if form != own_form:
        raise UsageError(
            f"{uri}: the teacher's blocks are {form} ({teacher.model}), and stage align rebuilds {own_form} blocks "
            f"with base {base.name}; use these shards for stage distill"
        )
    require_teacher("--base", base, info, uri)
    missing = sorted(set(layers_read(info, mixed)) - set(capture.layers))
    if missing:
        raise UsageError(
            f"{uri} lacks the hidden states of layers {missing}, without which the stream cannot be followed; "
            "capture with --layers all"
        )


def layers_read(info: DatasetInfo, mixed: Sequence[int]) -> list[int]:
    """The layers whose hidden states stage align needs, to train those that mix time.

    Each boundary is enough for its layer; attention outputs rebuild the residual stream from the first layer on.
    """
    return sorted(mixed) if info.capture.hidden_states == "boundaries" else list(range(max(mixed) + 1))


AlignedFrom = Literal["attention", "boundaries", "tokens"]


def aligned_from(info: DatasetInfo) -> AlignedFrom:
    """What stage align reads: stored attention outputs, stored streams, or the tokens, which every dataset has."""
    kind = info.capture.hidden_states
    return kind if kind in ("attention", "boundaries") else "tokens"


def columns_of(stage: str, info: DatasetInfo, mixed: Sequence[int], *, entropy: bool = False) -> list[str]:
    """The heavy columns that a stage reads; `entropy`: with the teacher's entropies."""
    if stage == "align":
        if aligned_from(info) == "tokens":
            return []
        kind = "attn" if info.capture.hidden_states == "attention" else "boundary"
        return [hidden_column(f"{kind}.{layer}") for layer in layers_read(info, mixed)]
    columns = ["logits"] if info.capture.logits != "none" else [hidden_column("final")]
    return [*columns, "token_stats"] if entropy or info.capture.logits in ("sampled", "hybrid") else columns


@dataclass(frozen=True)
class ShardSet:
    """One --shards of a run."""

    uri: str
    info: DatasetInfo
    extent: Extent
    weight: float
    """Its share of the samples, relative to the other sets of its stage."""

    def open(self, columns: Collection[str]) -> Dataset:
        """The samples of the run, with these heavy columns."""
        return open_shards(self.uri, columns).only(self.extent.parts)

    def content(self) -> dict[str, Any]:
        """Its identity, independent of its place."""
        return _source(self.info) | self.extent.content() | {"dataset": self_hash(self.info.to_bytes())}

    def serves(self, stage: str) -> bool:
        """Whether it is made for the stage: for align, hidden states of the layers, or rows of tokens alone."""
        distills = self.info.capture.logits != "none" or self.info.capture.hidden_states == "final"
        if stage == "align":
            return aligned_from(self.info) != "tokens" or not distills
        return distills


def open_shard_sets(
    uris: Sequence[str], weights: Sequence[float] | None, begun: Sequence[Mapping[str, Any]] = (), run: Path = Path()
) -> list[ShardSet]:
    """The set of each URI; of a dataset that has grown, what `run` began with, by the `content` that it recorded.

    All processes get the extents that the first one sees. Raises UsageError if there is no set, or the weights do not
    match them; ConfigurationDiffers if what the run began with is not there.
    """
    if weights is not None and (len(weights) != len(uris) or any(weight <= 0 for weight in weights)):
        raise UsageError(f"--shard-weights {weights}: give a positive weight for each of the {len(uris)} --shards")
    datasets = [open_shards(uri, []) for uri in uris or ("",)]
    for number, (dataset, recorded) in enumerate(zip(datasets, begun, strict=False)):
        extent = Extent.recorded(recorded)
        if extent is not None and recorded.items() >= json.loads(json.dumps(_source(dataset.info))).items():
            datasets[number] = continued(dataset, extent, run)
    extents: list[Extent] = broadcast_object_list([Extent.of(dataset) for dataset in datasets])
    chosen = weights or [float(extent.samples) for extent in extents]
    return [
        ShardSet(uri, dataset.info, extent, weight)
        for uri, dataset, extent, weight in zip(uris, datasets, extents, chosen, strict=True)
    ]


def _source(info: DatasetInfo) -> dict[str, Any]:
    return {
        "teacher": info.teacher.model_dump(mode="json"),
        "corpus": info.corpus.fingerprint,
        "capture": info.capture.model_dump(mode="json"),
    }


def one_kind(sets: Sequence[ShardSet], stage: str) -> None:
    """Raise UsageError unless a batch may mix samples of these sets."""
    kinds = {
        aligned_from(shards.info)
        if stage == "align"
        else "final hidden states"
        if shards.info.capture.logits == "none"
        else "logits"
        for shards in sets
    }
    if len(kinds) > 1:
        raise UsageError(
            f"stage {stage} would read {' and '.join(sorted(kinds))} from {', '.join(shards.uri for shards in sets)}; "
            "give it shards of one kind"
        )
