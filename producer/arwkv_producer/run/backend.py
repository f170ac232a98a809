"""Starts the capture backend that `--capture-backend` names."""

import sys
from typing import TYPE_CHECKING

from arwkv_producer.config import GenerateConfig
from arwkv_producer.run.job import Job
from arwkv_producer.teacher.engine import TeacherEngine
from arwkv_producer.teacher.engine_faults import engine_faults
from arwkv_producer.teacher.int8_products import multiplies_int8
from arwkv_producer.teacher.vllm_setup import EngineConfig, prepare_environment, require_runnable

if TYPE_CHECKING:
    from arwkv_producer.teacher.stock_engine import StockEngine
    from arwkv_producer.teacher.transformers_engine import TransformersEngine


def start_engine(config: GenerateConfig, job: Job) -> "TeacherEngine | StockEngine | TransformersEngine":
    """Start the backend that `--capture-backend` names. Raises EngineFailed if it does not start, and
    CaptureDiffers if a capture that is not verified does not answer as transformers does."""
    dtype, own = job.info.teacher.dtype, job.teacher.dtype
    program = "transformers" if config.capture_backend == "transformers" else "vLLM"
    why = f" (--dtype {config.dtype}; the checkpoint's own is {own})" if dtype != own else ""
    print(f"starting {program} with {job.teacher.name} in {dtype}{why}", file=sys.stderr)
    if config.capture_backend == "transformers":
        from arwkv_producer.teacher.transformers_engine import TransformersEngine

        return TransformersEngine(job.teacher, dtype, job.capture_settings())
    prepare_environment(config.tensor_parallel, config.verbose)  # before torch loads
    from arwkv_producer.run.self_check import expected_answers, is_due, require_expected

    setup = _setup(config, job)
    expected = []
    if is_due(config, job):
        require_runnable(setup)
        expected = expected_answers(config, job)
    with engine_faults(job.teacher.name):
        engine = _start_vllm(config, job, setup)
    try:
        require_expected(expected, engine, job)
    except BaseException:
        engine.close()
        raise
    return engine


def require_startable(config: GenerateConfig, job: Job) -> None:
    """Raise UsageError for a teacher that the backend cannot run here, as far as it can tell before weights load."""
    if config.capture_backend != "transformers":
        prepare_environment(config.tensor_parallel, config.verbose)
        require_runnable(_setup(config, job))


def _start_vllm(config: GenerateConfig, job: Job, setup: EngineConfig) -> "TeacherEngine | StockEngine":
    if config.capture_backend == "pooler":
        return TeacherEngine(setup, job.capture_settings())
    from arwkv_producer.teacher.stock_engine import StockEngine

    return StockEngine(setup, config.top_k, job.info.tokenizer.vocab_size)


def _setup(config: GenerateConfig, job: Job) -> EngineConfig:
    return EngineConfig(
        model=job.teacher.model,
        architecture=job.teacher.architecture,
        head_size=job.teacher.head_size,
        head_dtype=job.teacher.head_dtype,
        has_text_part=job.teacher.has_text_part,
        multiplies_int8=multiplies_int8(job.teacher.quantization),
        revision=job.teacher.revision,
        dtype=job.info.teacher.dtype,
        max_length=config.max_length,
        step_tokens=config.step_tokens,
        tensor_parallel=config.tensor_parallel,
        gpu_memory_fraction=config.gpu_memory_fraction,
        verbose=config.verbose,
    )
