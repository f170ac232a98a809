"""The k largest columns of each row, faster on a CPU than torch.topk, which sorts while it selects."""

import numpy as np
import torch
from torch import Tensor

COLUMNS_PER_GROUP = 32


def top_k(values_TV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and columns [T, k] of the k largest of each row, in descending order; as `values_TV.topk(k)`."""
    if values_TV.device.type != "cpu":
        return values_TV.topk(k, dim=-1)
    groups = values_TV.shape[1] // COLUMNS_PER_GROUP
    columns_TK = _largest(values_TV, k) if groups < 4 * k else _largest_by_groups(values_TV, k, groups)
    top_TK, order_TK = values_TV.gather(1, columns_TK).sort(dim=-1, descending=True, stable=True)
    return top_TK, columns_TK.gather(1, order_TK)


def _largest(values_TV: Tensor, k: int) -> Tensor:
    """Columns of the k largest, in no order; numpy's partition uses the CPU's vector instructions."""
    first = values_TV.shape[1] - k
    return torch.from_numpy(np.argpartition(values_TV.numpy(), first, axis=1)[:, first:])


def _largest_by_groups(values_TV: Tensor, k: int, groups: int) -> Tensor:
    """The same over wide rows: the k largest are in the k groups whose maxima are largest, or in no group.

    Group g holds columns g, g + groups, g + 2·groups, …, so that the maxima are a reduction over contiguous rows.
    """
    grouped = groups * COLUMNS_PER_GROUP
    maxima_TG = values_TV[:, :grouped].view(len(values_TV), COLUMNS_PER_GROUP, groups).amax(1)
    members = torch.arange(COLUMNS_PER_GROUP)[:, None] * groups
    candidates_TN = (_largest(maxima_TG, k)[:, None, :] + members).flatten(1)
    ungrouped = torch.arange(grouped, values_TV.shape[1]).expand(len(values_TV), -1)
    candidates_TN = torch.cat([candidates_TN, ungrouped], dim=1)
    return candidates_TN.gather(1, _largest(values_TV.gather(1, candidates_TN), k))
