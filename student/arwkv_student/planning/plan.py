"""`student plan`: memory, hours and bytes of each stage, and the cheaper way of stage 1."""

import dataclasses
from typing import Any

from arwkv_store.errors import UsageError
from arwkv_student.bases.checkpoint import open_base_config
from arwkv_student.bases.convert import student_config
from arwkv_student.bases.layers import chosen_layers
from arwkv_student.planning.model_size import FORWARD_ONLY, StudentSize, size_of
from arwkv_student.planning.settings import PlanSettings
from arwkv_student.settings import AdvancedTimeMixer

TOKENS_ALONE_BYTES, SAMPLE_BYTES = 4.2, 64
"""Stored bytes of a token and its mask, and of the rest of a sample."""
ATTENTION_BYTES = 1.4
"""Stored bytes of one value of an attention output in bf16 (byte planes and zstd), about."""
CAPTURE_UTILIZATION = 0.4
"""Share of the peak that a capture's prefill reaches."""


def plan(settings: PlanSettings) -> dict[str, Any]:
    """The costs of a student's stages. Operations are of one token; memory is of one device.

    Raises NotFound or UsageError for a base without a config.json at hand, or of an unknown family.
    """
    if not settings.base:
        raise UsageError("--base is missing; name the checkpoint that the student starts from, such as Qwen2.5-0.5B")
    base = open_base_config(settings.base)
    chosen = {item.name: getattr(settings, item.name) for item in dataclasses.fields(AdvancedTimeMixer)}
    layers = chosen_layers(base, chosen.pop("layers"))
    config = student_config(base, settings.preset or "arwkv", chosen, layers)
    size = size_of(base, config, settings.trained, settings.context)
    document: dict[str, Any] = {
        "base": settings.base,
        "preset": config.preset,
        "parameters": size.parameters,
        "trained": size.trained,
        "base_attention_parameters": size.base_attention,
    }
    if size.mixing:
        document["align"] = _align(size, settings)
    document["distill"] = _distill(size, settings)
    return document


def _align(size: StudentSize, settings: PlanSettings) -> dict[str, Any]:
    tokens, C = settings.align_tokens, size.config.hidden_size
    read_layers = size.config.time_mix_layers[-1] + 1
    mixers = 6 * size.parameters["time_mix"] + 3 * size.recurrence_operations
    stream = 2 * (size.active_mlp + size.parameters["attention"]) * read_layers / size.layers
    attention = 2 * size.base_attention + size.attention_operations
    row_bytes = TOKENS_ALONE_BYTES + SAMPLE_BYTES / settings.context
    stored = row_bytes + ATTENTION_BYTES * C * read_layers
    layers_kept = 2 if size.config.time_mix_options.value_residual == "differentiable" else 1
    bf16 = settings.dtype == "bf16"
    activations = layers_kept * size.mixer_activations(bf16) + FORWARD_ONLY * C
    # A layer's gradient is computed before it is shared out.
    whole_gradients = 4 * size.trained["align"] if settings.fsdp else 0
    ways = {
        "tokens": _stage(
            size, settings, tokens, mixers + stream + attention, row_bytes, size.trained["align"], activations,
            base_attention_bytes=size.base_attention * (2 if bf16 else 4),
        ),
        "stored": _stage(
            size, settings, tokens, mixers + stream, stored, size.trained["align"],
            activations + 2 * C * read_layers,
        ),
    }  # fmt: skip
    forward = 2 * (size.active_mlp + size.parameters["attention"] + size.base_attention) + size.attention_operations
    rate = settings.tflops * 1e12 * CAPTURE_UTILIZATION * settings.processes
    capture_hours = tokens * forward / rate / 3600
    ways["stored"]["capture_hours"] = capture_hours
    ways["tokens"]["capture_hours"] = 0.0
    for way in ways.values():
        way["hours_of_a_student"] = way["hours"] + way["capture_hours"] / settings.students
        for name in ("gradients", "together"):
            way["device_bytes"][name] += whole_gradients
    cheaper = min(ways, key=lambda name: (ways[name]["hours_of_a_student"], ways[name]["stored_bytes"]))
    return {**ways, "cheaper": cheaper}


def _distill(size: StudentSize, settings: PlanSettings) -> dict[str, Any]:
    counted = size.parameters
    all_layers = size.active_mlp + counted["time_mix"] + counted["attention"]
    head = counted["head"] or counted["embedding"]
    frozen_share = 1 - size.trained["distill"] / counted["all"]
    # Two operations a weight forward, two for the gradient of the input, two for that of a trained weight.
    passes = 6 - 2 * frozen_share + (2 if settings.gradient_checkpointing else 0)
    bf16, C = settings.dtype == "bf16", size.config.hidden_size
    kept_attention = size.attention_operations / max(size.mixing, 1) * (size.layers - size.mixing)
    operations = passes * all_layers + 6 * head + 3 * (size.recurrence_operations + kept_attention)
    layer = size.layer_activations(bf16)
    activations = size.layers * 4 * C + layer if settings.gradient_checkpointing else size.layers * layer
    row_bytes = TOKENS_ALONE_BYTES + SAMPLE_BYTES / settings.context + settings.bytes_per_token
    return _stage(size, settings, settings.distill_tokens, operations, row_bytes, size.trained["distill"], activations)


def _stage(
    size: StudentSize,
    settings: PlanSettings,
    tokens: int,
    operations: float,
    bytes_per_token: float,
    trained: int,
    activations: float,
    base_attention_bytes: int = 0,
) -> dict[str, Any]:
    """One stage's row: fp32 weights (bf16 of frozen layers), gradients, AdamW's moments; `activations` of a token."""
    shares = settings.processes if settings.fsdp else 1
    parts = size.parameters
    in_bf16 = 0 if settings.dtype == "fp32" else min(parts["all"] - trained, size.dense_weights)
    memory = {
        "weights": (4 * parts["all"] - 2 * in_bf16) / shares,
        "gradients": 4 * trained / shares,
        "optimizer": 8 * trained / shares,
        "base_attention": base_attention_bytes,
        "activations": activations * settings.batch_size * settings.context,
    }
    computed = settings.tflops * 1e12 * settings.utilization * settings.processes / operations
    read = settings.disk_mb_per_s * 1e6 / bytes_per_token
    tokens_per_s = min(computed, read)
    return {
        "tokens": tokens,
        "operations_per_token": operations,
        "tokens_per_s": tokens_per_s,
        "limited_by": "computing" if computed <= read else "reading",
        "hours": tokens / tokens_per_s / 3600,
        "bytes_per_token": bytes_per_token,
        "stored_bytes": bytes_per_token * tokens,
        "device_bytes": {**memory, "together": sum(memory.values())},
        "start_bytes": 4 * size.parameters["all"] + base_attention_bytes,
    }


def print_plan(document: dict[str, Any]) -> None:
    """The plan as text; `document` is the result of `plan`."""
    parts = ", ".join(f"{name} {count:,}" for name, count in document["parameters"].items() if count)
    print(f"{document['base']}, preset {document['preset']}: parameters {parts}")
    rows = [("distill", document["distill"])]
    if "align" in document:
        ways = document["align"]
        rows = [("align from tokens", ways["tokens"]), ("align from stored outputs", ways["stored"]), *rows]
    for name, row in rows:
        print(
            f"{name}: {row['tokens']:,} tokens in {row['hours']:,.1f} hours ({row['tokens_per_s']:,.0f} tokens/s, ",
            end="",
        )
        print(f"limited by {row['limited_by']}), {row['operations_per_token'] / 1e9:,.1f} GFLOP a token")
        print(f"  {row['bytes_per_token']:,.1f} bytes/token, {row['stored_bytes'] / 1e9:,.1f} GB of shards")
        memory = row["device_bytes"]
        shown = ", ".join(f"{part.replace('_', ' ')} {size / 1e9:,.1f}" for part, size in memory.items() if size)
        print(f"  GB on a device: {shown}; {row['start_bytes'] / 1e9:,.1f} GB of main memory at the start of process 0")
        if row.get("capture_hours"):
            print(f"  {row['capture_hours']:,.1f} hours of capture before it")
    if "align" in document:
        hours = {name: ways[name]["hours_of_a_student"] for name in ("tokens", "stored")}
        print(f"cheaper for stage align: from {document['align']['cheaper']} ({_pair(hours)} hours a student)")


def _pair(hours: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:,.1f}" for name, value in hours.items())
