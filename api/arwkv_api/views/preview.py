"""A sample as people read it: its text, how unsure the teacher was at each token, and what else it held likely."""

import bisect
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from arwkv_api.roots.manifests import unreadable
from arwkv_api.roots.place import Place
from arwkv_store.dataset.shard import Shard
from arwkv_store.errors import CorruptShard, NotFound
from arwkv_store.format.columns import heavy_columns
from arwkv_store.format.manifest import ShardManifest
from arwkv_store.format.sample import Sample
from arwkv_store.format.schema import DatasetInfo

OPEN_SHARDS = 16
# So many tokens before a window are read with it: what a token adds depends on those before it.
CONTEXT_TOKENS = 16


class Decoder(Protocol):
    """Turns token ids into the text that they stand for where they stand."""

    def follow(self, ids: Sequence[int]) -> list[tuple[str, tuple[int, ...]]]:
        """For each id of a stretch the text that it adds, and the ids before it that had not made a character yet."""

    def after(self, unfinished: tuple[int, ...], token_id: int) -> str:
        """The text that `token_id` would add in the middle of a text, after ids that have not made a character yet."""


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
    text: str | None = Field(
        description="what the token adds to the text, nothing where it ends within a character; null where the "
        "dataset's tokenizer is missing"
    )
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

    def sample(self, place: Place, info: DatasetInfo, manifest: ShardManifest, sample_id: int) -> Sample:
        """The sample with this id.

        Raises NotFound where the part skips it, CorruptShard for damaged bytes, TryAgain where it cannot be read now.
        """
        try:
            return self._read(place, info, manifest, sample_id)
        except CorruptShard as error:
            # The store names the whole path, which callers need not know.
            raise CorruptShard(str(error).replace(f"{place.uri}/shards/", "")) from error
        except OSError as error:
            raise unreadable(error, f"part {manifest.part}") from error

    def _read(self, place: Place, info: DatasetInfo, manifest: ShardManifest, sample_id: int) -> Sample:
        with self._lock:
            shard = self._shard(place, info, manifest)
            # Ids rise within a part, by one for the most part: then the first guess is right.
            guess = sample_id - manifest.first_sample_id
            if guess < manifest.rows and (found := shard.sample(guess)).sample_id == sample_id:
                return found
            row = bisect.bisect_left(range(manifest.rows), sample_id, key=lambda row: shard.sample(row).sample_id)
            if row < manifest.rows and (found := shard.sample(row)).sample_id == sample_id:
                return found
        raise NotFound(f"sample {sample_id}: part {manifest.part} holds smaller and larger ids, but not this one")

    def _shard(self, place: Place, info: DatasetInfo, manifest: ShardManifest) -> Shard:
        key = (place.uri, manifest.files["rows"].sha256, manifest.part)
        shard = self._open.get(key)
        if shard is None:
            columns = {**heavy_columns(info), "hidden": ()}
            shard = self._open[key] = Shard(place.source(), manifest, columns, verify=True, in_part=True)
            while len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return shard


def preview_of(sample: Sample, part: int, first: int, limit: int, top: int, decoder: Decoder | None) -> SamplePreview:
    """Tokens `first` to `first + limit` of a sample, each with its `top` most likely alternatives."""
    T = len(sample.tokens)
    stop = min(first + limit, T)
    texts: list[tuple[str | None, tuple[int, ...]]] = [(None, ())] * max(stop - first, 0)
    if decoder is not None and texts:
        begin = max(first - CONTEXT_TOKENS, 0)
        texts = [*decoder.follow(sample.tokens[begin:stop].tolist())[first - begin :]]
    # Where each position's entries begin: entry t of the logits predicts token t + 1.
    starts = None if sample.logits is None else np.concatenate([[0], np.cumsum(sample.logits.counts)])
    tokens = []
    for position, (text, unfinished) in zip(range(first, stop), texts, strict=True):
        text_of = None if decoder is None else partial(decoder.after, unfinished)
        tokens.append(_token(sample, position, starts, top, text, text_of))
    return SamplePreview(
        sample_id=sample.sample_id,
        part=part,
        source=sample.source,
        n_tokens=T,
        first_position=first,
        tokens=tokens,
    )


def _token(
    sample: Sample,
    position: int,
    starts: np.ndarray | None,
    top: int,
    text: str | None,
    text_of: Callable[[int], str] | None,
) -> TokenPreview:
    token_id, at = int(sample.tokens[position]), position - 1
    alternatives: list[Alternative] = []
    tail_mass = None
    if at >= 0 and sample.logits is not None and starts is not None:
        entries = slice(int(starts[at]), int(starts[at + 1]))
        ids, logprobs = sample.logits.ids[entries], sample.logits.logprobs[entries]
        likely = np.argsort(-logprobs, kind="stable")[:top]
        alternatives = [
            Alternative(id=i, text=None if text_of is None else text_of(i), logprob=p)
            for i, p in zip(ids[likely].tolist(), logprobs[likely].tolist(), strict=True)
        ]
        tail_mass = float(np.exp(sample.logits.tail_logprob[at]))
    return TokenPreview(
        position=position,
        id=token_id,
        text=text,
        counts=bool(sample.loss_mask[position]) and position > 0,
        entropy=None if at < 0 or sample.entropy is None else float(sample.entropy[at]),
        logprob=None if at < 0 or sample.true_logprob is None else float(sample.true_logprob[at]),
        tail_mass=tail_mass,
        alternatives=alternatives,
    )
