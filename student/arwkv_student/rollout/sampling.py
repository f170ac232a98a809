"""Answers to a batch of prompts, token by token, with the recurrent cache.

Each answer has random numbers of its own, so it does not depend on the answers beside it or on the batch's size.
Shape legend: B answers of a batch, T time, N new tokens, V vocabulary rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from arwkv_student.model.modeling import ArwkvForCausalLM


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen."""

    temperature: float
    top_p: float
    seed: int
    max_new_tokens: int
    end_tokens: frozenset[int]
    vocab_size: int
    """The head's rows from here on are padding, and are never chosen."""

    def uniforms(self, number: int) -> Tensor:
        """[N] of answer `number`, in fp64."""
        return torch.from_numpy(np.random.default_rng([self.seed, number]).random(self.max_new_tokens))

    def choose(self, logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
        """Token ids [B]: the likeliest, or drawn by the inverse of the cumulative distribution."""
        logits_BV = logits_BV[:, : self.vocab_size].float()
        if self.temperature == 0:
            return logits_BV.argmax(-1)
        p_BV, order_BV = (logits_BV.double() / self.temperature).softmax(-1).sort(dim=-1, descending=True)
        above_BV = p_BV.cumsum(-1) - p_BV
        p_BV = p_BV.masked_fill(above_BV >= self.top_p, 0.0)
        ends_BV = p_BV.cumsum(-1)
        target_B1 = uniform_B.to(ends_BV)[:, None] * ends_BV[:, -1:]
        place_B1 = torch.searchsorted(ends_BV, target_B1, right=True)
        last_B1 = (p_BV > 0).sum(-1, keepdim=True) - 1
        return order_BV.gather(1, torch.minimum(place_B1, last_B1)).squeeze(1)


@torch.inference_mode()
def answers(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], numbers: Sequence[int], sampler: Sampler
) -> list[list[int]]:
    """The new token ids of each prompt's answer, with its end token where it ended.

    An answer's number chooses its random numbers (see `Sampler.uniforms`).
    """
    ids_BT, mask_BT = _padded_left(prompts, model.device)
    cache = None if isinstance(model, ArwkvForCausalLM) else DynamicCache(config=model.config)
    uniforms_BN = torch.stack([sampler.uniforms(number) for number in numbers]).to(model.device)
    said: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    for new in range(sampler.max_new_tokens):
        positions_BT = (mask_BT.cumsum(-1) - 1).clamp_min(0)[:, -ids_BT.shape[1] :]
        output = model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        chosen_B = sampler.choose(output.logits[:, -1], uniforms_BN[alive, new])
        going = []
        for row, (answer, token) in enumerate(zip(alive, chosen_B.tolist(), strict=True)):
            said[answer].append(token)
            if token not in sampler.end_tokens:
                going.append(row)
        if not going:
            break
        rows = torch.tensor(going, device=model.device)
        if len(going) < len(alive):
            cache.batch_select_indices(rows)
            mask_BT, alive = mask_BT[rows], [alive[row] for row in going]
        ids_BT = chosen_B[rows, None]
        mask_BT = torch.cat([mask_BT, torch.ones_like(ids_BT)], dim=1)
    return said


def _padded_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both [B, T]."""
    longest = max(map(len, prompts))
    ids_BT = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for row, prompt in enumerate(prompts):
        ids_BT[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask_BT[row, longest - len(prompt) :] = 1
    return ids_BT.to(device), mask_BT.to(device)
