"""The README.md of an exported student: description, teacher and shards, recipe, and figures."""

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from arwkv_student.export.runtimes import CONCURRENT_SEQUENCES, runtimes
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.run.provenance import runs_behind
from arwkv_student.settings import ExportSettings

# Settings that did not affect the student, or that the card shows elsewhere.
UNSAID = re.compile(r"shards_\d+_.*|start|base|base_config|teacher_head|preset|data_hash|template_hash")


def model_card(student: ArwkvForCausalLM, source: Path, settings: ExportSettings) -> str:
    """Markdown, with what transformers and the Hub read in its head. `source` is the folder of a run, or of a stage."""
    runs = runs_behind(source)
    place = settings.push or "FOLDER"
    options = student.config.time_mix_options
    facts = [
        ("Preset", student.config.preset),
        ("Layers that mix time", f"{len(student.config.time_mix_layers)} of {student.config.num_hidden_layers}"),
        ("Heads", f"{options.num_heads} × {options.head_dim}"),
        ("Weights", f"{str(student.dtype).removeprefix('torch.')}; the decay's bias in float32"),
        *(fact for identity, _ in runs for fact in _sources(identity)),
        ("Made with", f"arwkv {metadata.version('arwkv')}"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in facts)
    code = ", trust_remote_code=True" if settings.self_contained else ""
    before = "" if settings.self_contained else "import arwkv_student\n"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [arwkv, rwkv-7, distillation]
{_base_model(runs)}---
# {(settings.push or str(source.resolve())).rpartition("/")[2]}

A recurrent student: RWKV-7 time mixing in the place of attention, distilled offline from its teacher's stored outputs.
Its state has a constant size, however long the text.

| | |
|---|---|
{table}

{_recipe(runs)}
```python
{before}from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{place}"{code})
tokenizer = AutoTokenizer.from_pretrained("{place}")
```

| runtime | |
|---|---|
{_runtimes(source, settings)}
"""


def _runtimes(source: Path, settings: ExportSettings) -> str:
    """Where the student runs and how, and why it does not run elsewhere."""
    alone = "as above" if settings.self_contained else "as above, with the package `arwkv` installed"
    how = {
        "transformers": alone,
        "vLLM": f"`vllm serve {settings.push or 'FOLDER'} --enforce-eager`, with the package `arwkv` installed",
        "llama.cpp": f"{_gguf(settings)}. {CONCURRENT_SEQUENCES}",
    }
    found = runtimes(source)
    return "\n".join(
        f"| {name} | {how[name] if not found[name] else 'no: ' + '; '.join(found[name])} |" for name in found
    )


def _gguf(settings: ExportSettings) -> str:
    if not settings.gguf:
        return "`student export --model FOLDER --out student.gguf` writes a file for it"
    files = f"the GGUF files beside the safetensors ({', '.join(settings.gguf)})"
    return files if settings.push is None else f"{files}: `llama-server -hf {settings.push} -np 1`"


def _base_model(runs: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """The Hub's link to the base, where the base has a Hub name."""
    base = (runs[0][0].get("base") or {}) if runs else {}
    name = str(base.get("name", "")).partition("@")[0]
    return f"base_model: {name}\n" if re.fullmatch(r"[\w-]+/[\w.-]+", name) and not Path(name).exists() else ""


def _sources(identity: dict[str, Any]) -> list[tuple[str, str]]:
    """Base, teachers and shards by content, or the conversations of stage 3."""
    facts = []
    for name, what in (("base", "Base"), ("teacher_head", "Teacher head")):
        if identity.get(name) is not None:
            facts.append((what, f"{_at(identity[name]['name'], identity[name])}, {identity[name]['checkpoint']}"))
    for number in sorted(int(name.split("_")[1]) for name in identity if re.fullmatch(r"shards_\d+_teacher", name)):
        teacher, capture = (identity[f"shards_{number}_{part}"] for part in ("teacher", "capture"))
        weights = teacher.get("weights_hash") or "no hash of the weights recorded"
        facts.append(("Teacher", f"{_at(teacher['model'], teacher)}, {weights}"))
        held = f"logits {capture['logits']}, hidden states {capture['hidden_states']}"
        corpus, samples = identity[f"shards_{number}_corpus"], identity[f"shards_{number}_samples"]
        dataset = identity.get(f"shards_{number}_dataset", "of unknown hash")
        facts.append(("Shards", f"{samples:,} samples, corpus {corpus}, {held}, dataset.json {dataset}"))
    if "data_hash" in identity:
        facts.append((f"Data of stage {identity['stage']}", f"sha256 {identity['data_hash']}"))
    return facts


def _at(name: str, recorded: dict[str, Any]) -> str:
    return name if recorded.get("revision") is None else f"{name.partition('@')[0]}@{recorded['revision']}"


def _recipe(runs: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """Stages with their figures, and the settings that they ran with."""
    rows, settings = [], []
    for identity, stages in runs:
        for stage, summary in stages.items():
            held_out = summary.get("eval") or summary.get("held_out") or {}
            figures = ", ".join(f"{name} {value:.4g}" for name, value in held_out.items()) or "not evaluated"
            rows.append(f"| {stage} | {summary['steps']:,} | {summary['tokens']:,} | {figures} |")
        said = {name: value for name, value in identity.items() if value is not None and not UNSAID.fullmatch(name)}
        settings.append(", ".join(f"{name} {json.dumps(value)}" for name, value in sorted(said.items())))
    if not rows:
        return ""
    header = "| stage | steps | tokens | held-out figures |\n|---|---|---|---|\n"
    lines = "\n".join(f"Settings: {line}\n" for line in settings)
    return f"{header}{chr(10).join(rows)}\n\n{lines}"
