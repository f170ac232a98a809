"""How close a student is to its teacher on held-out shards; the teacher itself is not needed.

Shape legend: B batch, T time, P positions that count, C model width, V vocabulary.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor
from transformers import PreTrainedModel

from arwkv_kernels import linear_sparse_kl
from arwkv_store import Dataset
from arwkv_store.errors import UsageError
from arwkv_student.data.collate import collate
from arwkv_student.losses.divergences import LOGITS_PER_CHUNK
from arwkv_student.model.modeling import HeadLoss


@dataclass
class Sums:
    """Running sums over positions, in fp64."""

    positions: int = 0
    kl: float = 0.0
    agreed: int = 0
    student_nll: float = 0.0
    teacher_nll: float = 0.0
    teacher_known: bool = field(default=True)

    def over_processes(self, device: torch.device) -> "Sums":
        """The sums of all processes that train together."""
        if (processes := PartialState().num_processes) == 1:
            return self
        own = torch.tensor([getattr(self, part.name) for part in fields(self)], dtype=torch.float64, device=device)
        positions, kl, agreed, student_nll, teacher_nll, known = reduce(own, reduction="sum").tolist()
        return Sums(int(positions), kl, int(agreed), student_nll, teacher_nll, known == processes)

    def figures(self) -> dict[str, float]:
        """KL in nats, perplexities on the true tokens, their ratio, and the share of equal top tokens."""
        student = math.exp(self.student_nll / self.positions)
        figures = {
            "kl": self.kl / self.positions,
            "student_perplexity": student,
            "top1_agreement": self.agreed / self.positions,
            "tokens": self.positions,
        }
        if self.teacher_known:
            teacher = math.exp(self.teacher_nll / self.positions)
            figures |= {"teacher_perplexity": teacher, "perplexity_ratio": student / teacher}
        return figures


@torch.no_grad()
def evaluate(
    model: PreTrainedModel, dataset: Dataset, *, batch_size: int = 32, samples: int | None = None, bf16: bool = False
) -> dict[str, float]:
    """Figures of `model` over the positions whose prediction counts (see `Sums.figures`).

    KL(teacher ‖ student) counts the mass outside the stored tokens as one more outcome. Processes that train together
    share the batches out, and all of them must call it. Raises UsageError if the shards hold no logits, or no position
    counts.
    """
    was_training = model.training
    model.eval()
    sums = Sums()
    for batch in _batches(dataset, batch_size, samples):
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        if "ids" not in batch:
            raise UsageError("the shards hold no logits to compare with; evaluate on shards made with --logits top-k")
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16):
            model(input_ids=batch["input_ids"], head_loss=_adding(sums, batch, dataset.info.tokenizer.vocab_size))
    model.train(was_training)
    sums = sums.over_processes(model.device)
    if not sums.positions:
        raise UsageError("every loss mask of the shards is False, so no position counts; evaluate on other shards")
    return sums.figures()


def _batches(dataset: Dataset, batch_size: int, samples: int | None) -> Iterator[dict[str, Tensor]]:
    """The batches of this process, as many as of every other: a sharded model's forward needs all of them."""
    processes = PartialState()
    count = min(len(dataset), samples or len(dataset))
    rounds = math.ceil(count / (batch_size * processes.num_processes))
    for turn in range(rounds):
        first = (turn * processes.num_processes + processes.process_index) * batch_size
        if first < count:
            yield collate([dataset[index] for index in range(first, min(first + batch_size, count))])
        else:
            spare = collate([dataset[0]])
            yield spare | {"predicts": torch.zeros_like(spare["predicts"])}


def _adding(sums: Sums, batch: dict[str, Tensor], vocab_size: int) -> HeadLoss:
    """Adds the batch inside the model's forward, where a sharded head is gathered."""

    def add(hidden_BTC: Tensor, weight_VC: Tensor) -> Tensor:
        with torch.autocast(hidden_BTC.device.type, enabled=False):
            _add(sums, hidden_BTC, weight_VC[:vocab_size], batch)
        return hidden_BTC.new_zeros(())

    return add


def _add(sums: Sums, hidden_BTC: Tensor, weight_VC: Tensor, batch: dict[str, Tensor]) -> None:
    mask_T = batch["predicts"].flatten()
    hidden_TC, weight_VC = hidden_BTC.flatten(0, 1).float(), weight_VC.float()
    kl = linear_sparse_kl(
        hidden_TC,
        weight_VC,
        batch["ids"],
        batch["logprobs"],
        batch["counts"],
        batch["tail_logprob"],
        mask=mask_T,
        reduction="sum",
    )
    true_T = batch["input_ids"].roll(-1, dims=1).flatten()
    first_T = batch["counts"].cumsum(0) - batch["counts"]
    likeliest_T = torch.where(batch["counts"] > 0, batch["ids"][first_T.clamp_max(len(batch["ids"]) - 1)], -1)
    rows = max(1, LOGITS_PER_CHUNK // weight_VC.shape[0])
    for at in torch.split(mask_T.nonzero().flatten(), rows):
        logits_PV = hidden_TC[at] @ weight_VC.T
        own_P = logits_PV.gather(1, true_T[at, None]).squeeze(1)
        sums.student_nll += float((logits_PV.logsumexp(1) - own_P).double().sum())
        sums.agreed += int((logits_PV.argmax(1) == likeliest_T[at]).sum())
    sums.positions += int(mask_T.sum())
    sums.kl += float(kl)
    if "entropy_gap" in batch:
        sums.kl += float(batch["entropy_gap"][mask_T].double().sum())
    if "true_logprob" in batch:
        sums.teacher_nll -= float(batch["true_logprob"].flatten()[mask_T].double().sum())
    else:
        sums.teacher_known = False
