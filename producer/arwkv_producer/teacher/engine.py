"""The producer's side of vLLM: start a capturing engine, send it token sequences, receive their rows."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arwkv_producer.teacher.capture import CAPTURING, CaptureSettings
from arwkv_producer.teacher.engine_faults import engine_faults
from arwkv_producer.teacher.vllm_setup import (
    EngineConfig,
    finished_prompts,
    free_memory,
    prepare_environment,
    start_vllm,
    unheard,
)

DISTRIBUTION = ("ids", "logprobs", "tail_logprob", "entropy", "true_logprob", "drawn")
"""Rows of an engine that keeps distributions, in addition to hidden states."""


class TeacherEngine:
    """A running vLLM engine whose workers capture. Close it to free its memory and processes.

    With one device everything runs in this process, which spares the way between processes; under tensor parallelism
    the workers are processes of their own and hand rows over through a folder in memory.
    """

    def __init__(self, config: EngineConfig, settings: CaptureSettings) -> None:
        self._model = config.model
        self._end = contextlib.ExitStack()
        # Before torch loads: it reads how idle threads wait.
        prepare_environment(config.tensor_parallel, config.verbose)

        from arwkv_producer.teacher.handover import HandoverFolder, open_handover

        folder = None
        if config.tensor_parallel > 1:
            folder = str(self._end.enter_context(HandoverFolder()).path)
        self._handover = open_handover(folder)
        self.distribution = DISTRIBUTION if settings.top_k else ()
        try:
            self._llm = start_vllm(
                config,
                CAPTURING + config.architecture,
                runner="pooling",
                additional_config={"arwkv_capture": replace(settings, handover_folder=folder).as_json()},
                max_model_len=config.max_length,
            )
        except BaseException:
            self._end.close()
            raise

    def capture(
        self, prompts: Sequence[NDArray[np.int32]], keys: Sequence[int], read: Callable[[int], None] = unheard
    ) -> list[dict[str, Any]]:
        """Run the prompts; answer each one's captured rows (CPU tensors, T rows each) in the order asked.

        `read` gets each prompt's number of tokens as soon as it is done. `keys` are unique among prompts in flight. A
        prompt whose rows did not arrive answers an empty mapping.
        """
        from vllm import PoolingParams

        from arwkv_producer.teacher.capture_models import TASK

        with engine_faults(self._model), finished_prompts(self._llm, read):
            self._llm.encode(
                [{"prompt_token_ids": prompt.tolist()} for prompt in prompts],
                [PoolingParams(task=TASK, extra_kwargs={"key": key}) for key in keys],
                pooling_task=TASK,
                use_tqdm=False,
            )
        return [self._take(key) for key in keys]

    def _take(self, key: int) -> dict[str, Any]:
        try:
            return self._handover.take(key)
        except KeyError:
            return {}

    def close(self) -> None:
        """Stop the engine and its workers; free the model and the handover folder."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        free_memory()
        self._end.close()
