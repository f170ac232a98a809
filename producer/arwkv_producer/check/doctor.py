"""`producer doctor`: what will happen with a teacher on this machine, before anything is loaded."""

import importlib.util
from pathlib import Path
from typing import Any

from arwkv_producer.check.combination import described, runner, unverified, vllm_version
from arwkv_producer.check.reference import cost, obstacle, reference_bytes
from arwkv_producer.config import DoctorConfig
from arwkv_producer.teacher.families import FAMILIES, FORMS, Family, family_of
from arwkv_producer.teacher.teacher import Teacher, find_teacher, native_dtype
from arwkv_producer.teacher.vllm_setup import VERIFIED_VLLM, own_class, shows_streams
from arwkv_store.errors import UsageError


def doctor(config: DoctorConfig) -> dict[str, Any]:
    """The teacher's findings, or without one the table of families that were compared with transformers."""
    return findings(find_teacher(config.teacher)) if config.teacher else {"families": matrix()}


def matrix() -> list[dict[str, str]]:
    """One row for each family."""
    return [
        {
            "model_type": name,
            "block": family.form or "unknown",
            "captured": captured(family),
            "vLLM": family.not_in_vllm or f"verified on {VERIFIED_VLLM}, V1 runner",
            "transformers": "verified",
        }
        for name, family in FAMILIES.items()
    ]


def captured(family: Family) -> str:
    """What can be asked for."""
    inside = [] if family.form is None else ["attention"]
    return ", ".join(["logits", "final", *inside, *(["boundaries"] if inside and family.boundaries else [])])


def findings(teacher: Teacher) -> dict[str, Any]:
    """What a capture of this teacher will be like."""
    family = family_of(teacher.config)
    dtype = native_dtype(teacher)
    new = unverified(teacher, "pooler", dtype)
    return {
        "teacher": teacher.name,
        "architecture": teacher.architecture,
        "model_type": teacher.family,
        "block": "unknown" if family.form is None else f"{family.form}: {FORMS[family.form]}",
        "captured": captured(family) + (", boundaries in vLLM" if _is_shown(teacher, family) else ""),
        "layers": teacher.layers,
        "hidden_size": teacher.width,
        "head": f"{teacher.head_rows:,} rows in {'float32' if teacher.head_dtype == 'float32' else teacher.dtype}",
        "dtype": teacher.dtype,
        "weights_bytes": weights_bytes(teacher),
        "engine": _engine(teacher),
        "verified": described(new),
        "self_check": _self_check(teacher, dtype) if new else "not needed; --self-check always does it all the same",
    }


def _self_check(teacher: Teacher, dtype: str) -> str:
    size = reference_bytes(teacher, dtype)
    if reason := obstacle(size):
        return f"not possible here: {reason}; run producer verify on the first shards where it is"
    return cost(size)


def weights_bytes(teacher: Teacher) -> int | None:
    """Size of a local teacher's weight files; None for one on the Hub."""
    folder = Path(teacher.model)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder.is_dir() else None


def _is_shown(teacher: Teacher, family: Family) -> bool:
    """Whether boundaries are captured although the block is not known."""
    if family.form is not None or importlib.util.find_spec("vllm") is None:
        return False
    try:
        return shows_streams(teacher.name, teacher.architecture)
    except UsageError:
        return False


def _engine(teacher: Teacher) -> str:
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed; use --capture-backend transformers"
    try:
        own_class(teacher.name, teacher.architecture)
    except UsageError as error:
        return str(error)
    named = {"0": "V1 runner", "1": "V2 runner, not verified"}.get(runner(), "unknown runner")
    return f"vLLM {vllm_version()}, {named}"
