"""`student export`: a folder others can use: weights, tokenizer, model card, and with `self_contained` the code too."""

import inspect
import json
import re
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import arwkv_kernels.arguments
import arwkv_kernels.chunked
import arwkv_kernels.reference
import arwkv_store.errors
from arwkv_store.errors import UsageError
from arwkv_student import cache, config, exported_wkv7, model, time_mix
from arwkv_student.convert import copy_tokenizer
from arwkv_student.model import ArwkvForCausalLM
from arwkv_student.run_folder import replace_text, write_json
from arwkv_student.settings import ExportSettings
from arwkv_student.train import load_student

# Module -> the file it becomes. transformers loads files of one folder, and follows their relative imports.
EXPORTED: dict[ModuleType, str] = {
    model: "modeling_arwkv",
    cache: "arwkv_cache",
    config: "arwkv_options",
    time_mix: "arwkv_time_mix",
    exported_wkv7: "arwkv_wkv7",
    arwkv_kernels.arguments: "arwkv_arguments",
    arwkv_kernels.chunked: "arwkv_chunked",
    arwkv_kernels.reference: "arwkv_reference",
    arwkv_store.errors: "arwkv_errors",
}
TYPE_CHECKING_BLOCK = re.compile(r"^if TYPE_CHECKING:\n(?:    .*\n|\n)+?(?=\S)", re.MULTILINE)


def export(settings: ExportSettings) -> dict[str, Any]:
    """Write the folder; returns its path and files. Raises UsageError where `out` is the student's own folder."""
    source, out = Path(settings.model), settings.out
    student = load_student(source)
    if source.resolve() == out.resolve():
        raise UsageError(f"--out {out} is the student itself; name another folder")
    student.save_pretrained(out)
    copy_tokenizer(source, out)
    if settings.self_contained:
        _write_code(out)
    replace_text(out / "README.md", model_card(student, source, settings))
    return {"out": str(out), "files": sorted(path.name for path in out.iterdir())}


def _write_code(out: Path) -> None:
    """Put the model's modules beside the weights, and name them in config.json for `trust_remote_code`."""
    for module, name in EXPORTED.items():
        replace_text(out / f"{name}.py", _relative(inspect.getsource(module)))
    document = json.loads((out / "config.json").read_text())
    document["auto_map"] = {
        "AutoConfig": "modeling_arwkv.ArwkvConfig",
        "AutoModelForCausalLM": "modeling_arwkv.ArwkvForCausalLM",
    }
    write_json(out / "config.json", document)


def _relative(source: str) -> str:
    """The module's source with imports of our packages turned into imports of the files beside it."""
    source = TYPE_CHECKING_BLOCK.sub("", source)
    source = source.replace("from arwkv_kernels import wkv7", "from .arwkv_wkv7 import wkv7")
    for module, name in EXPORTED.items():
        source = source.replace(f"from {module.__name__} import", f"from .{name} import")
    return source


def model_card(student: ArwkvForCausalLM, source: Path, settings: ExportSettings) -> str:
    """What the student is, from which teacher and shards it was trained, and its figures, as README.md."""
    run = next((folder for folder in (source, source.parent) if (folder / "run.json").is_file()), None)
    identity = {} if run is None else json.loads((run / "run.json").read_text())
    options = student.config.time_mix_options
    facts = {
        "Preset": student.config.preset,
        "Layers that mix time": f"{len(student.config.time_mix_layers)} of {student.config.num_hidden_layers}",
        "Heads": f"{options.num_heads} × {options.head_dim}",
        "Teacher": identity.get("shards_teacher", {}).get("model", "unknown"),
        "Teacher's weights": identity.get("shards_teacher", {}).get("weights_hash") or "no hash recorded",
        "Shards' corpus": identity.get("shards_corpus", "unknown"),
        "Made with": f"arwkv {metadata.version('arwkv')}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    code = ", trust_remote_code=True" if settings.self_contained else ""
    before = "" if settings.self_contained else "import arwkv_student\n"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [arwkv, rwkv-7, distillation]
---
# {source.resolve().name}

A recurrent student: RWKV-7 time mixing in the place of attention, distilled offline from its teacher's stored outputs.
Its state has a constant size, however long the text.

| | |
|---|---|
{table}
{_figures(run)}
```python
{before}from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER"{code})
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```
"""


def _figures(run: Path | None) -> str:
    """Held-out figures of each stage, where the run evaluated."""
    if run is None:
        return ""
    rows = []
    for stage in ("align", "distill"):
        file = run / stage / "stage.json"
        summary = json.loads(file.read_text()) if file.is_file() else {}
        if "eval" in summary:
            held_out = summary["eval"]
            ratio = held_out.get("perplexity_ratio", float("nan"))
            rows.append(f"| {stage} | {summary['tokens']:,} | {held_out['kl']:.4f} | {ratio:.4f} |")
    if not rows:
        return ""
    header = "| stage | tokens | KL to teacher (nats) | student/teacher perplexity |\n|---|---|---|---|\n"
    return "\nHeld-out figures:\n\n" + header + "\n".join(rows) + "\n"
