"""Common to both engines: vLLM's environment, a quiet start, the end, and the verified versions."""

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from arwkv_producer.teacher.capture import register
from arwkv_producer.teacher.int8_products import int8_products_are_exact, int8_products_need_bf16
from arwkv_producer.teacher.quiet import output_shown_on_failure
from arwkv_store.errors import UsageError

VERIFIED_VLLM = "0.32.0"
"""The version whose captured values were compared with transformers, on its V1 model runner."""

DEFAULT_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "OMP_WAIT_POLICY": "passive",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}
"""Set where the user set nothing. A pooling pass keeps no cache between prompts, so 1 GiB of it is plenty on a CPU;
capture is verified on the V1 runner."""


@dataclass(frozen=True)
class EngineConfig:
    """How the teacher runs."""

    model: str
    """A local folder or a Hub name."""
    architecture: str
    """As in the model's config.json."""
    head_size: int = 0
    """Width of one attention head; 0 where keys are kept in latent form."""
    head_dtype: str = "float32"
    """`model` leaves the head in the model's arithmetic."""
    has_text_part: bool = False
    """Whether the text decoder has a configuration of its own, inside a multimodal model's."""
    multiplies_int8: bool = False
    """Whether the teacher multiplies 8-bit activations by 8-bit weights."""
    revision: str | None = None
    dtype: str = "float32"
    max_length: int = 2048
    step_tokens: int = 4096
    """Tokens per engine step, and so how many rows of hidden states live at a time."""
    tensor_parallel: int = 1
    gpu_memory_fraction: float = 0.9
    verbose: bool = False


def start_vllm(config: EngineConfig, architecture: str, **arguments: Any) -> Any:
    """A `vllm.LLM` whose model class is our registered `architecture`; `arguments` are vLLM's own."""
    prepare_environment(config.tensor_parallel, config.verbose)
    held_back = contextlib.nullcontext() if config.verbose else output_shown_on_failure("loading vLLM and the teacher")
    with held_back, _llvmlite_hidden(), _ctrl_c_kept_from_workers(config.tensor_parallel):
        import vllm

        require_runnable(config)
        register()
        _keep_settings_of_architecture(config.architecture, architecture)
        head: dict[str, Any] = {"head_dtype": config.head_dtype}
        of_text = {"text_config": head} if config.has_text_part else {}
        if vllm.platforms.current_platform.is_cpu() and config.dtype == "float32" and not config.head_size:
            arguments["attention_backend"] = "CPU_MLA"  # the one for AMX, which vLLM prefers, takes no fp32
        llm = vllm.LLM(
            model=config.model,
            tokenizer=config.model,
            revision=config.revision,
            tokenizer_revision=config.revision,
            dtype=config.dtype,
            hf_overrides={"architectures": [architecture], **head, **of_text},
            max_num_batched_tokens=config.step_tokens,
            max_num_seqs=min(256, config.step_tokens),
            enable_chunked_prefill=True,
            enable_prefix_caching=False,
            enforce_eager=True,
            language_model_only=True,
            tensor_parallel_size=config.tensor_parallel,
            gpu_memory_utilization=config.gpu_memory_fraction,
            disable_log_stats=True,
            use_tqdm_on_load=config.verbose,
            **arguments,
        )
    runner = "V2" if getattr(llm.llm_engine.vllm_config, "use_v2_model_runner", False) else "V1"
    if (warning := unverified(vllm.__version__, runner)) is not None:
        print(warning, file=sys.stderr)
    return llm


def require_runnable(config: EngineConfig) -> None:
    """Raise UsageError for a teacher that this vLLM cannot run here, as far as its configuration tells."""
    _require_supported_head(config)
    _require_exact_products(config)
    own_class(config.model, config.architecture)


def shows_streams(model: str, architecture: str) -> bool:
    """Whether vLLM's model shows the residual stream between its layers, which EAGLE-3 reads. Raises UsageError."""
    from vllm.model_executor.models.interfaces import supports_eagle3

    return bool(supports_eagle3(own_class(model, architecture)))


def unheard(tokens: int) -> None:
    """For who does not ask what was read."""


@contextlib.contextmanager
def finished_prompts(llm: Any, read: Callable[[int], None]) -> Iterator[None]:
    """Inside the block, `read` gets each prompt's number of tokens as soon as vLLM is done with it."""
    engine = llm.llm_engine
    step = engine.step

    def counted_step() -> Any:
        outputs = step()
        for output in outputs:
            if output.finished:
                read(len(output.prompt_token_ids))
        return outputs

    engine.step = counted_step
    try:
        yield
    finally:
        del engine.step


@contextlib.contextmanager
def _ctrl_c_kept_from_workers(tensor_parallel: int) -> Iterator[None]:
    """Processes started inside ignore Ctrl-C, which a terminal sends to all processes: the producer stops them."""
    if tensor_parallel == 1:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _llvmlite_hidden() -> Iterator[None]:
    """Keep one module out of sight: vLLM (0.32, on a CPU) asks what modules hold for their `__dict__` when it starts,
    and the C library in this one, once numba has loaded it, answers with a function that vLLM stumbles over."""
    name = "llvmlite.binding.ffi"
    module = sys.modules.pop(name, None)
    try:
        yield
    finally:
        if module is not None:
            sys.modules[name] = module


def free_memory() -> None:
    """Free the memory of an engine after it is shut down and no longer referenced."""
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


def unverified(version: str, runner: str) -> str | None:
    """A warning if captured values were never compared with transformers on this vLLM; else None."""
    if version.split("+")[0] == VERIFIED_VLLM and runner == "V1":
        return None
    return (
        f"vLLM {version}, model runner {runner}: captured values were compared with transformers on {VERIFIED_VLLM}, "
        'model runner V1; run "producer verify" on the first shards'
    )


def _require_supported_head(config: EngineConfig) -> None:
    """Raise UsageError if vLLM's CPU attention has no kernel for the head size; vLLM would fail only during the run."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() or not config.head_size:
        return
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if config.head_size not in sizes:
        raise UsageError(
            f"--teacher {config.model}: attention heads of size {config.head_size}; on a CPU vLLM supports "
            f"{', '.join(map(str, sizes))}: use such a teacher, or a GPU"
        )


def own_class(model: str, architecture: str) -> Any:
    """vLLM's class. Raises UsageError for an architecture that this vLLM does not have, or cannot import: it would say
    so after loading much."""
    from vllm import ModelRegistry

    if architecture not in ModelRegistry.get_supported_archs():
        raise UsageError(
            f"--teacher {model}: this vLLM has no architecture {architecture}; use --capture-backend transformers"
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # of what vLLM's modules use
            return ModelRegistry.models[architecture].load_model_cls()
    except ImportError as error:
        raise UsageError(
            f"--teacher {model}: vLLM cannot load its class {architecture} ({error}); install what it lacks, or use "
            "--capture-backend transformers"
        ) from error


def _keep_settings_of_architecture(own: str, ours: str) -> None:
    """vLLM adjusts its configuration by the architecture's name (block sizes of hybrids, and such): by ours, too."""
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    if own in MODELS_CONFIG_MAP:
        MODELS_CONFIG_MAP[ours] = MODELS_CONFIG_MAP[own]


def _require_exact_products(config: EngineConfig) -> None:
    """Raise UsageError if the teacher multiplies 8-bit integers and vLLM on this processor does it wrongly or not."""
    from vllm.platforms import current_platform

    if not config.multiplies_int8 or not current_platform.is_cpu():
        return
    if not int8_products_are_exact():
        raise UsageError(
            f"--teacher {config.model}: it multiplies 8-bit activations, and this processor has no VNNI instructions: "
            "vLLM's products would saturate, and log-probabilities would be off by up to 2 nats; use a processor with "
            "them (lscpu lists avx512_vnni or avx_vnni), a GPU, or the teacher before quantization"
        )
    if config.dtype == "float32" and int8_products_need_bf16():
        raise UsageError(
            f"--teacher {config.model}: it multiplies 8-bit activations, which vLLM on a processor with AMX does for "
            "bf16 alone, and the arithmetic asked for is float32; use --dtype bfloat16"
        )


def prepare_environment(tensor_parallel: int, verbose: bool) -> None:
    """Set variables that torch and vLLM read when they are imported, unless the user has set them."""
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
