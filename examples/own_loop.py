"""A training loop and a loss of your own over a dataset of teacher logits: any torch model, no trainer of ours.

Example: `python examples/own_loop.py --shards ./shards --steps 200`
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from arwkv_store import Dataset, Sample, ShardSampler, open_dataset
from arwkv_store.commands.command_line import main


@dataclass(frozen=True)
class LoopConfig:
    """Train a small recurrent model on a dataset's logits."""

    shards: str
    """A dataset: folder, http(s)://, s3://, hf://."""
    steps: int = 200
    """Optimizer steps."""
    batch_size: int = 8
    """Samples a step."""
    learning_rate: float = 3e-3
    """Of AdamW."""
    json: bool = False
    """Print one JSON document on stdout."""


class SmallModel(torch.nn.Module):
    """An embedding, a GRU and a head. Any module that maps token ids [B, T] to logits [B, T, V] works here."""

    def __init__(self, vocab_size: int, width: int = 64) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(vocab_size, width)
        self.recurrent = torch.nn.GRU(width, width, batch_first=True)
        self.head = torch.nn.Linear(width, vocab_size)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """[B, T, V] logits."""
        states_BTC, _ = self.recurrent(self.embedding(ids_BT))
        logits_BTV: Tensor = self.head(states_BTC)
        return logits_BTV


def sparse_cross_entropy(logits_BTV: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean over the positions that count of -Σ p log q, over the entries that the teacher stored: a loss of your own.

    `ids` and `logprobs` [N] lie position after position, `counts` [B, T] says how many each position has.
    """
    logprobs_PV = logits_BTV.flatten(0, 1).log_softmax(-1)
    position_N = torch.repeat_interleave(torch.arange(len(logprobs_PV)), batch["counts"].flatten())
    terms_N = -batch["logprobs"].exp() * logprobs_PV[position_N, batch["ids"]]
    counted_N = batch["predicts"].flatten()[position_N]
    return terms_N[counted_N].sum() / batch["predicts"].sum()


def collate(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """tokens, counts and predicts (whether entry t counts, which is of token t+1) [B, T], padded; ids, logprobs [N]."""
    tensors = [sample.to_torch() for sample in samples]
    batch = {name: pad_sequence([one[name] for one in tensors], batch_first=True) for name in ("tokens", "counts")}
    masks = [one["loss_mask"][1:] for one in tensors]
    predicts = torch.nn.functional.pad(pad_sequence(masks, batch_first=True), (0, 1))
    flat = {name: torch.cat([one[name] for one in tensors]) for name in ("ids", "logprobs")}
    return batch | flat | {"predicts": predicts}


def batches(dataset: Dataset, config: LoopConfig) -> DataLoader[Any]:
    """An opened dataset is a map-style torch dataset; its order is a pure function of the seed and the step."""
    epochs = -(-config.steps * config.batch_size // len(dataset))
    sampler = ShardSampler(dataset.shard_rows, batch_size=config.batch_size, epochs=epochs)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]  # any map-style one


def train(config: LoopConfig) -> dict[str, Any]:
    """Train a small recurrent model with your own loop and loss. Example: see the top of this file."""
    dataset = open_dataset(config.shards, columns=["logits"])
    torch.manual_seed(0)
    model = SmallModel(dataset.info.tokenizer.vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate)
    losses = []
    for batch in itertools.islice(batches(dataset, config), config.steps):
        loss = sparse_cross_entropy(model(batch["tokens"]), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if not config.json:
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} nats over {len(losses)} steps")
    return {"steps": len(losses), "first_loss": losses[0], "last_loss": losses[-1]}


if __name__ == "__main__":
    main("own_loop.py", "Train your own model on a dataset of teacher logits.", train)
