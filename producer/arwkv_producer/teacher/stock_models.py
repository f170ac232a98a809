"""vLLM's models with one change: padding rows of the head get probability 0, as in our capture."""

from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig


class OverTokenizer:
    """Mixed into a vLLM causal language model; `additional_config["arwkv_vocab_size"]` is the tokenizer's size."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]  # the model beside the mixin
        self._real_vocab_size = int(vllm_config.additional_config["arwkv_vocab_size"])

    def compute_logits(self, *arguments: Any, **named: Any) -> Tensor | None:
        logits_TV: Tensor | None = super().compute_logits(*arguments, **named)  # type: ignore[misc]  # as above
        if logits_TV is not None:  # under tensor parallelism only one rank has them
            logits_TV[:, self._real_vocab_size :] = -torch.inf
        return logits_TV
