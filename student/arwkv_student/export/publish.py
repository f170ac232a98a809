"""`student export`: a folder, GGUF files beside its safetensors if asked, and both on the Hub with `--push`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from arwkv_store.errors import UsageError
from arwkv_student.export.hub import open_repository
from arwkv_student.settings import ExportSettings


def publish(settings: ExportSettings) -> dict[str, Any]:
    """Write what is asked for, then push it; returns the paths, the notes, and the commit.

    The repository is created before anything is exported, so that a missing permission shows at once. Raises what the
    exports raise, and UsageError or TryAgain of the Hub.
    """
    from arwkv_student.export.runtimes import llama_cpp_obstacles
    from arwkv_student.model.loading import require_student
    from arwkv_student.sharding.distributed_checkpoint import has_shares

    one_file = settings.out.suffix == ".gguf"
    if one_file and settings.gguf:
        raise UsageError(f"--gguf with --out {settings.out}: name a folder for GGUF files beside the safetensors")
    require_student(Path(settings.model))
    if has_shares(Path(settings.model)) and (one_file or settings.gguf):
        raise UsageError(f"--model {settings.model} is a checkpoint in shares; export it to a folder first")
    if settings.gguf and (found := llama_cpp_obstacles(Path(settings.model))):
        raise UsageError(f"--gguf {' '.join(settings.gguf)}: llama.cpp cannot compute this student: {'; '.join(found)}")
    repository = None if settings.push is None else open_repository(settings.push, private=settings.private)
    result = _one_gguf(settings) if one_file else _folder(settings)
    if repository is not None:
        folder = settings.out.parent if one_file else settings.out
        result |= repository.push(
            {name: folder / name for name in result["files"]}, Path(settings.model).resolve().name
        )
    return result


def _folder(settings: ExportSettings) -> dict[str, Any]:
    from arwkv_student.export.export import export

    result = export(settings)
    name = (settings.push or str(settings.out.resolve())).rpartition("/")[2]
    for kind in settings.gguf:
        one = _one_gguf(replace(settings, out=settings.out / f"{name}-{kind}.gguf", dtype=kind, self_contained=False))
        result["files"] += one["files"]
        result["notes"] = one["notes"]
    return result


def _one_gguf(settings: ExportSettings) -> dict[str, Any]:
    from arwkv_student.export.gguf_file import export_gguf

    return export_gguf(settings)
