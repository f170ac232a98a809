"""`student export`: a folder for others: weights, tokenizer, model card, and with `self_contained` the code."""

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from arwkv_store.errors import UsageError
from arwkv_student.bases.tokenizer import copy_tokenizer
from arwkv_student.export import exported_wkv7
from arwkv_student.export.model_card import model_card
from arwkv_student.model import modeling as model
from arwkv_student.model.loading import load_student
from arwkv_student.run.durable import replace_text, write_json
from arwkv_student.settings import ExportSettings
from arwkv_student.sharding.distributed_checkpoint import has_shares, whole_student
from arwkv_student.suppressed_rows import suppress_padding_rows

OUR_IMPORT = re.compile(r"^( *)from (arwkv_[\w.]+) import", re.MULTILINE)
# Imported by its short name; in an exported student, the recurrence without compiled kernels.
KERNELS, KERNELS_INSTEAD = "arwkv_kernels", exported_wkv7.__name__
DTYPES = {
    **{"bf16": torch.bfloat16, "fp16": torch.float16, "f16": torch.float16},
    **{"fp32": torch.float32, "f32": torch.float32},
}
TYPE_CHECKING_BLOCK = re.compile(r"^if TYPE_CHECKING:\n(?:    .*\n|\n)+?(?=\S)", re.MULTILINE)


def export(settings: ExportSettings) -> dict[str, Any]:
    """Write the folder; returns its path and files.

    Raises UsageError if `out` is the student's own folder, and for a type of weights that only GGUF has.
    """
    source, out = Path(settings.model), settings.out
    if settings.dtype is not None and settings.dtype not in DTYPES:
        raise UsageError(f"--dtype {settings.dtype} is a type of GGUF files; name a file: --out {out}.gguf")
    student = _student(source, settings.dtype)
    if source.resolve() == out.resolve():
        raise UsageError(f"--out {out} is the student itself; name another folder")
    student.save_pretrained(out)
    copy_tokenizer(source, out)
    if settings.self_contained:
        _write_code(out)
    suppress_padding_rows(out)
    replace_text(out / "README.md", model_card(student, source, settings))
    return {"out": str(out), "files": sorted(path.name for path in out.iterdir() if path.is_file())}


def _student(source: Path, dtype: str | None) -> PreTrainedModel:
    """Of a folder, or of a checkpoint whose weights are in shares."""
    if not has_shares(source):
        return load_student(source, None if dtype is None else DTYPES[dtype])
    if dtype is not None:
        raise UsageError(f"--model {source} --dtype {dtype}: its shares are fp32; export it without, then from there")
    return whole_student(source)


def _write_code(out: Path) -> None:
    """Write the model's modules next to the weights, and name them in config.json for `trust_remote_code`."""
    for name, source in _sources().items():
        replace_text(out / f"{_file_name(name)}.py", source)
    document = json.loads((out / "config.json").read_text())
    entry = _file_name(model.__name__)
    document["auto_map"] = {"AutoConfig": f"{entry}.ArwkvConfig", "AutoModelForCausalLM": f"{entry}.ArwkvForCausalLM"}
    write_json(out / "config.json", document)


def _sources() -> dict[str, str]:
    """The model's module and all of our modules that it imports, by name, with relative imports.

    transformers loads a model's code from one folder without subfolders, and follows only relative imports.
    """
    sources: dict[str, str] = {}
    waiting = [model.__name__]
    while waiting:
        name = waiting.pop()
        if name not in sources:
            source = inspect.getsource(importlib.import_module(name))
            source = TYPE_CHECKING_BLOCK.sub("", source)
            waiting += [_instead(found[2]) for found in OUR_IMPORT.finditer(source)]
            sources[name] = OUR_IMPORT.sub(
                lambda found: f"{found[1]}from .{_file_name(_instead(found[2]))} import", source
            )
    return sources


def _instead(module: str) -> str:
    return KERNELS_INSTEAD if module == KERNELS else module


def _file_name(module: str) -> str:
    """transformers expects `modeling_…` for the model, and all files in one folder."""
    return "modeling_arwkv" if module == model.__name__ else "arwkv_" + module.rpartition(".")[2]
