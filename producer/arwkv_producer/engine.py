"""The producer's side of vLLM: start a capturing engine, send it token sequences, receive their rows."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from arwkv_producer.capture import CAPTURED_ARCHITECTURES, CaptureSettings, register
from arwkv_producer.quiet import output_shown_on_failure
from arwkv_store.errors import UsageError

VERIFIED_VLLM = "0.32.0"
"""The version whose captured values were compared with transformers."""

DEFAULT_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "OMP_WAIT_POLICY": "passive",
}
"""Set where the user set nothing. A pooling pass keeps no cache between prompts, so 1 GiB of it is plenty on a CPU."""


@dataclass(frozen=True)
class EngineConfig:
    """How the teacher runs."""

    model: str
    """A local folder or a Hub name."""
    architecture: str
    """As in the model's config.json; must be one of CAPTURED_ARCHITECTURES."""
    head_size: int = 0
    """Width of one attention head; 0 where unknown."""
    revision: str | None = None
    dtype: str = "float32"
    max_length: int = 2048
    step_tokens: int = 4096
    """Tokens per engine step, and so how many rows of hidden states live at a time."""
    tensor_parallel: int = 1
    gpu_memory_fraction: float = 0.9
    verbose: bool = False


class TeacherEngine:
    """A running vLLM engine whose workers capture. Close it (or use `with`) to free its memory and processes.

    With one device everything runs in this process, which spares the way between processes; under tensor parallelism
    the workers are processes of their own and hand rows over through a folder in memory.
    """

    def __init__(self, config: EngineConfig, settings: CaptureSettings) -> None:
        prepare_environment(config.tensor_parallel, config.verbose)
        self._folder: Path | None = None
        if config.tensor_parallel > 1:
            memory = Path("/dev/shm")
            self._folder = Path(tempfile.mkdtemp(prefix="arwkv-", dir=memory if memory.is_dir() else None))

        from arwkv_producer.handover import open_handover

        folder = None if self._folder is None else str(self._folder)
        self._handover = open_handover(folder)
        with output_shown_on_failure() if not config.verbose else contextlib.nullcontext():
            self._llm = self._start(config, replace(settings, handover_folder=folder))
        _say_if_unverified()

    def _start(self, config: EngineConfig, settings: CaptureSettings) -> Any:
        import vllm

        _require_supported_head(config)
        register()
        return vllm.LLM(
            model=config.model,
            tokenizer=config.model,
            revision=config.revision,
            tokenizer_revision=config.revision,
            runner="pooling",
            dtype=config.dtype,
            hf_overrides={"architectures": [CAPTURED_ARCHITECTURES[config.architecture]], "head_dtype": "float32"},
            additional_config={"arwkv_capture": settings.as_json()},
            max_model_len=config.max_length,
            max_num_batched_tokens=config.step_tokens,
            max_num_seqs=min(256, config.step_tokens),
            enable_chunked_prefill=True,
            enable_prefix_caching=False,
            enforce_eager=True,
            tensor_parallel_size=config.tensor_parallel,
            gpu_memory_utilization=config.gpu_memory_fraction,
            disable_log_stats=True,
            use_tqdm_on_load=config.verbose,
        )

    def capture(self, prompts: Sequence[NDArray[np.int32]], keys: Sequence[int]) -> list[dict[str, Any]]:
        """Run the prompts; answer each one's captured rows (CPU tensors, T rows each) in the order asked.

        `keys` are unique among prompts in flight. A prompt whose rows did not arrive answers an empty mapping.
        """
        from vllm import PoolingParams

        from arwkv_producer.capture_models import TASK

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
        from vllm.distributed import cleanup_dist_env_and_memory

        engine_core = self._llm.llm_engine.engine_core
        engine_core.shutdown()
        del self._llm
        cleanup_dist_env_and_memory()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _say_if_unverified() -> None:
    import vllm

    if vllm.__version__.split("+")[0] != VERIFIED_VLLM:
        print(
            f"vLLM {vllm.__version__}: captured values were compared with transformers on {VERIFIED_VLLM}; "
            'run "producer verify" on the first shards',
            file=sys.stderr,
        )


def _require_supported_head(config: EngineConfig) -> None:
    """Raise UsageError where vLLM's CPU attention has no kernel for the head size; it would say so mid-run only."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() or not config.head_size:
        return
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if config.head_size not in sizes:
        raise UsageError(
            f"--teacher {config.model}: attention heads of size {config.head_size}; on a CPU vLLM has "
            f"{', '.join(map(str, sizes))}: use such a teacher, or a GPU"
        )


def prepare_environment(tensor_parallel: int, verbose: bool) -> None:
    """Set what torch and vLLM read from the environment when they are imported, where the user set nothing."""
    defaults = dict(DEFAULT_ENVIRONMENT)
    if tensor_parallel == 1:
        defaults["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    else:
        # On a CPU vLLM wants a NUMA node per worker unless it is told which cores each one has.
        cores = sorted(os.sched_getaffinity(0))
        shares = [cores[rank::tensor_parallel] or cores for rank in range(tensor_parallel)]
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, share)) for share in shares)
    if not verbose:
        defaults |= {"VLLM_LOGGING_LEVEL": "ERROR", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
