"""What the teacher in transformers costs, and whether it can be run on this machine at all."""

from pathlib import Path

from arwkv_producer.teacher.teacher import Teacher, auto_class

SPARE = 1.2
"""Memory that loading needs, in sizes of the weights."""
MEMORY = Path("/proc/meminfo")


def reference_bytes(teacher: Teacher, dtype: str) -> int | None:
    """Size of the weights in this arithmetic, from the configuration alone; None where transformers lacks the model."""
    import torch
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(teacher.model, revision=teacher.revision)
        with torch.device("meta"):
            model = auto_class(teacher).from_config(config)
    except (ValueError, KeyError, ImportError, OSError):
        return None
    arithmetic: torch.dtype = getattr(torch, dtype)
    return int(model.num_parameters()) * arithmetic.itemsize


def obstacle(size_bytes: int | None) -> str | None:
    """Why a reference of that size cannot be run here; None if it can."""
    import torch

    if size_bytes is None:
        return "transformers cannot make this model"
    where, free = "host memory", _free_memory_bytes()
    if torch.cuda.is_available() and (on_gpu := torch.cuda.mem_get_info()[0]) < free:
        where, free = "the memory of one GPU", on_gpu
    if size_bytes * SPARE > free:
        return (
            f"its weights take {size_bytes / 1e9:,.1f} GB in transformers, and {free / 1e9:,.1f} GB of {where} are free"
        )
    return None


def cost(size_bytes: int | None) -> str:
    """In words, what the comparison of a run's first prompts takes."""
    return (
        "a few prompts are compared with transformers before the first shard, which loads "
        f"{(size_bytes or 0) / 1e9:,.2f} GB of weights there once"
    )


def _free_memory_bytes() -> int:
    lines = dict(line.split(":") for line in MEMORY.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) << 10
