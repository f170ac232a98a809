"""Top-k through vLLM's own `prompt_logprobs`: a fallback if our hook does not work, and a cross-check.

Shapes: T tokens of a prompt, K kept candidates. vLLM's lists begin each position with the token that is there, then the
K likeliest; its position rule is the other one: entry t is the distribution of token t itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from arwkv_producer.teacher.capture import OVER_TOKENIZER
from arwkv_producer.teacher.engine_faults import engine_faults
from arwkv_producer.teacher.vllm_setup import EngineConfig, finished_prompts, free_memory, start_vllm, unheard


class StockEngine:
    """A running vLLM engine that keeps the likeliest tokens and the mass of the rest. Close it to free its memory.

    One token is generated and discarded, because vLLM only then reports the distribution after a prompt's last token.
    """

    distribution = ("ids", "logprobs", "tail_logprob")

    def __init__(self, config: EngineConfig, top_k: int, vocab_size: int) -> None:
        self._model, self._top_k, self._vocab_size = config.model, top_k, vocab_size
        self._llm = start_vllm(
            config,
            OVER_TOKENIZER + config.architecture,
            additional_config={"arwkv_vocab_size": vocab_size},
            max_model_len=config.max_length + 1,
            max_logprobs=top_k,
        )

    def capture(
        self, prompts: Sequence[NDArray[np.int32]], keys: Sequence[int], read: Callable[[int], None] = unheard
    ) -> list[dict[str, Any]]:
        """Run the prompts; answer each one's rows (CPU tensors, T rows each) in the order asked.

        `read` gets each prompt's number of tokens as soon as it is done.
        """
        import vllm

        kept = vllm.SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprobs=self._top_k,
            prompt_logprobs=self._top_k,
            flat_logprobs=True,
            detokenize=False,
        )
        asked = [{"prompt_token_ids": prompt.tolist()} for prompt in prompts]
        with engine_faults(self._model), finished_prompts(self._llm, read):
            answers = self._llm.generate(asked, kept, use_tqdm=False)
        return [self._rows(answer) for answer in answers]

    def _rows(self, answer: Any) -> dict[str, Any]:
        width = self._top_k + 1
        flat, last = answer.prompt_logprobs, answer.outputs[0].logprobs
        ids_TK = np.array([*flat.token_ids, *last.token_ids[:width]], np.int32).reshape(-1, width)[:, 1:]
        logprobs_TK = np.array([*flat.logprobs, *last.logprobs[:width]], np.float32).reshape(-1, width)[:, 1:]
        return {
            "ids": torch.from_numpy(ids_TK.copy()),
            "logprobs": torch.from_numpy(logprobs_TK.copy()),
            "tail_logprob": torch.from_numpy(tail_logprob(logprobs_TK, self._vocab_size)),
        }

    def close(self) -> None:
        """Stop the engine and its workers; free the model."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        free_memory()


def tail_logprob(logprobs_TK: NDArray[np.float32], vocab_size: int) -> NDArray[np.float32]:
    """[T] log(1 - P), all there is to go by: a tail mass below about 1e-6 is lost in P's rounding, and may be -inf."""
    if logprobs_TK.shape[1] >= vocab_size:
        return np.full(len(logprobs_TK), -np.inf, np.float32)
    rest_T = 1.0 - np.exp(logprobs_TK.astype(np.float64)).sum(axis=1)
    with np.errstate(divide="ignore"):  # nothing left: log 0 = -inf
        tail_T: NDArray[np.float32] = np.log(np.maximum(rest_T, 0.0)).astype(np.float32)
    return tail_T
