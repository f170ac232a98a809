"""Reading long texts a chunk at a time: the state passes on, so memory does not grow with the text.

Layers that keep attention still keep a key and a value for every token.
Shape legend: B texts, T time, t tokens of a chunk, V vocabulary rows.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from arwkv_student.model.modeling import ArwkvForCausalLM


def _cache_of(model: PreTrainedModel) -> Cache | None:
    """None: the model makes its own."""
    return None if isinstance(model, ArwkvForCausalLM) else DynamicCache(config=model.config)


@torch.inference_mode()
def negative_log_likelihoods(
    model: PreTrainedModel, ids_BT: Tensor, vocab_size: int, chunk_tokens: int
) -> Iterator[Tensor]:
    """−log q of the tokens after the first, chunk after chunk, [B, t] each."""
    cache = _cache_of(model)
    for start in range(0, ids_BT.shape[1] - 1, chunk_tokens):
        end = min(start + chunk_tokens, ids_BT.shape[1] - 1)
        output = model(input_ids=ids_BT[:, start:end], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits_BtV = output.logits[..., :vocab_size].float()
        yield torch.nn.functional.cross_entropy(
            logits_BtV.flatten(0, 1), ids_BT[:, start + 1 : end + 1].flatten(), reduction="none"
        ).view(len(ids_BT), -1)


@torch.inference_mode()
def likeliest(model: PreTrainedModel, ids_BT: Tensor, last: int, vocab_size: int, chunk_tokens: int) -> Tensor:
    """The likeliest token [B, last] at each of the last `last` positions, given the true tokens before it."""
    cache, length = _cache_of(model), ids_BT.shape[1] - 1
    found: list[Tensor] = []
    for start in range(0, length, chunk_tokens):
        end = min(start + chunk_tokens, length)
        kept = max(0, end - max(start, length - last))
        output = model(
            input_ids=ids_BT[:, start:end], past_key_values=cache, use_cache=True, logits_to_keep=max(kept, 1)
        )
        cache = output.past_key_values
        if kept:
            found.append(output.logits[..., :vocab_size].argmax(-1))
    return torch.cat(found, dim=1)
