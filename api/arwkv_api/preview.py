"""A sample as people read it: its text, how unsure the teacher was at each token, and what else it held likely."""

import bisect
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from arwkv_api.committed import unreadable
from arwkv_store.columns import heavy_columns
from arwkv_store.errors import CorruptShard, NotFound
from arwkv_store.manifest import ShardManifest
from arwkv_store.sample import Sample
from arwkv_store.schema import DatasetInfo
from arwkv_store.shard import Shard
from arwkv_store.source import LocalSource

OPEN_SHARDS = 16


class Pieces(Protocol):
    """Turns one token id into the text it stands for."""

    def __call__(self, token_id: int, /) -> str | None: ...


class Alternative(BaseModel):
    """One token that the teacher held likely."""

    id: int
    text: str | None
    logprob: float = Field(description="nats, over the tokenizer's real vocabulary")


class TokenPreview(BaseModel):
    """One token, and the teacher's distribution from which it would have been drawn; nulls at the first token."""

    model_config = ConfigDict(ser_json_inf_nan="null")
    position: int
    id: int
    text: str | None = Field(description="null where the dataset's tokenizer is not at hand")
    counts: bool = Field(description="whether predicting this token counts in the loss")
    entropy: float | None = Field(description="nats, of the distribution that predicts this token")
    logprob: float | None = Field(description="nats, of this token under the teacher")
    tail_mass: float | None = Field(description="mass outside the stored entries")
    alternatives: list[Alternative]


class SamplePreview(BaseModel):
    """A window of one sample."""

    sample_id: int
    part: int
    source: str
    n_tokens: int
    first_position: int
    tokens: list[TokenPreview]


class Previews:
    """Keeps the last shards that were looked at open; one request decodes at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, str, int], Shard] = OrderedDict()

    def sample(self, folder: Path, info: DatasetInfo, manifest: ShardManifest, sample_id: int) -> Sample:
        """The sample with this id.

        Raises NotFound where the part skips it, CorruptShard for damaged bytes, TryAgain where it cannot be read now.
        """
        try:
            return self._read(folder, info, manifest, sample_id)
        except CorruptShard as error:
            # The store names the whole path, which is nobody's business beyond this machine.
            raise CorruptShard(str(error).replace(f"{folder}/shards/", "")) from error
        except OSError as error:
            raise unreadable(error, f"part {manifest.part}") from error

    def _read(self, folder: Path, info: DatasetInfo, manifest: ShardManifest, sample_id: int) -> Sample:
        with self._lock:
            shard = self._shard(folder, info, manifest)
            # Ids rise within a part, by one for the most part: then the first guess is right.
            guess = sample_id - manifest.first_sample_id
            if guess < manifest.rows and (found := shard.sample(guess)).sample_id == sample_id:
                return found
            row = bisect.bisect_left(range(manifest.rows), sample_id, key=lambda row: shard.sample(row).sample_id)
            if row < manifest.rows and (found := shard.sample(row)).sample_id == sample_id:
                return found
        raise NotFound(f"sample {sample_id}: part {manifest.part} holds ids around it, but not this one")

    def _shard(self, folder: Path, info: DatasetInfo, manifest: ShardManifest) -> Shard:
        key = (str(folder), manifest.files["rows"].sha256, manifest.part)
        shard = self._open.get(key)
        if shard is None:
            columns = {**heavy_columns(info), "hidden": ()}
            shard = self._open[key] = Shard(LocalSource(folder), manifest, columns, verify=True)
            while len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return shard


def preview_of(sample: Sample, part: int, first: int, limit: int, top: int, text_of: Pieces) -> SamplePreview:
    """Tokens `first` to `first + limit` of a sample, each with its `top` most likely alternatives."""
    T = len(sample.tokens)
    # Where each position's entries begin: entry t of the logits predicts token t + 1.
    starts = None if sample.logits is None else np.concatenate([[0], np.cumsum(sample.logits.counts)])
    tokens = [_token(sample, position, starts, top, text_of) for position in range(first, min(first + limit, T))]
    return SamplePreview(
        sample_id=sample.sample_id,
        part=part,
        source=sample.source,
        n_tokens=T,
        first_position=first,
        tokens=tokens,
    )


def _token(sample: Sample, position: int, starts: np.ndarray | None, top: int, text_of: Pieces) -> TokenPreview:
    token_id, at = int(sample.tokens[position]), position - 1
    alternatives: list[Alternative] = []
    tail_mass = None
    if at >= 0 and sample.logits is not None and starts is not None:
        entries = slice(int(starts[at]), int(starts[at + 1]))
        ids, logprobs = sample.logits.ids[entries], sample.logits.logprobs[entries]
        likely = np.argsort(-logprobs, kind="stable")[:top]
        alternatives = [
            Alternative(id=i, text=text_of(i), logprob=p)
            for i, p in zip(ids[likely].tolist(), logprobs[likely].tolist(), strict=True)
        ]
        tail_mass = float(np.exp(sample.logits.tail_logprob[at]))
    return TokenPreview(
        position=position,
        id=token_id,
        text=text_of(token_id),
        counts=bool(sample.loss_mask[position]) and position > 0,
        entropy=None if at < 0 or sample.entropy is None else float(sample.entropy[at]),
        logprob=None if at < 0 or sample.true_logprob is None else float(sample.true_logprob[at]),
        tail_mass=tail_mass,
        alternatives=alternatives,
    )
