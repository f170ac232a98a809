"""The teacher's own answers, sampled by vLLM."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from arwkv_producer.teacher.capture import OVER_TOKENIZER
from arwkv_producer.teacher.engine_faults import engine_faults
from arwkv_producer.teacher.vllm_setup import EngineConfig, finished_prompts, free_memory, start_vllm, unheard


@dataclass(frozen=True)
class SampledText:
    """One answer."""

    token_ids: Sequence[int]
    """Without the end token."""
    ended: bool
    """Whether it ended by itself, not at the maximum length."""


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled."""

    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int


def _seed(seed: int, number: int) -> int:
    """Of one answer. Its low bits are mixed well: torch's generator on a CPU takes 32 of them."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4])


class WritingEngine:
    """A running vLLM engine that samples answers of the tokenizer's tokens alone. Close it to free its memory."""

    def __init__(self, config: EngineConfig, sampling: Sampling, vocab_size: int) -> None:
        self._model, self._sampling = config.model, sampling
        self._llm = start_vllm(
            config,
            OVER_TOKENIZER + config.architecture,
            additional_config={"arwkv_vocab_size": vocab_size},
            max_model_len=config.max_length,
        )

    def write(
        self, prompts: Sequence[Sequence[int]], numbers: Sequence[int], read: Callable[[int], None] = unheard
    ) -> list[SampledText]:
        """An answer to each prompt's token ids, in the order asked; its number gives each its own seed."""
        import vllm

        sampling = self._sampling
        asked = [
            vllm.SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_new_tokens,
                seed=_seed(sampling.seed, number),
                detokenize=False,
            )
            for number in numbers
        ]
        with engine_faults(self._model), finished_prompts(self._llm, read):
            answers = self._llm.generate([{"prompt_token_ids": [*ids]} for ids in prompts], asked, use_tqdm=False)
        found = []
        for answer in answers:
            output = answer.outputs[0]
            ended = output.finish_reason == "stop"
            ids = list(output.token_ids)
            found.append(SampledText(ids[:-1] if ended else ids, ended))
        return found

    def close(self) -> None:
        """Stop the engine and its workers; free the model."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        free_memory()
