"""`student select`: the layers that keep their attention, chosen by data, in a file that `--layers` reads.

All time mixers are fitted in closed form first (see `arwkv_student.training.calibrate`). What the fit leaves is one
score; how much closer the fitted student comes to its teacher with a layer's attention back in place is the other.
"""

import dataclasses
from typing import Any

import torch

from arwkv_store import Dataset
from arwkv_store.commands.progress import Progress
from arwkv_store.errors import UsageError
from arwkv_student.bases.attention import BaseAttention
from arwkv_student.bases.checkpoint import BaseCheckpoint, open_base
from arwkv_student.bases.convert import untrained_student
from arwkv_student.data.collate import ShardSamples
from arwkv_student.data.shards import (
    aligned_from,
    columns_of,
    open_shards,
    require_fitting_hidden_states,
    require_same_tokenizer,
)
from arwkv_student.model.loading import accelerator, computes_in_bf16
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.run.durable import write_json
from arwkv_student.selection.scores import KeptLayers
from arwkv_student.selection.settings import SelectSettings
from arwkv_student.settings import AdvancedTimeMixer, TrainSettings
from arwkv_student.training.calibrate import Calibration, calibrate, calibration_batches


def select(settings: SelectSettings) -> dict[str, Any]:
    """Choose the layers and write `settings.out`; returns its content.

    `layers` mix time, `kept` attend. `relative_errors`: what the fit leaves of each layer's attention. `kl`: of the
    fitted student with no layer kept, evenly spaced ones, and the chosen ones; `kl_with_layer`: of the score's last
    round, by the layer that was tried (score `removal`: `kl_without_layer`). They are empty for shards without logits.
    `tokens`: how many the fit and the comparisons read.
    """
    base = open_base(settings.base)
    depth: int = base.family_config.num_hidden_layers
    if settings.keep >= depth:
        raise UsageError(f"--keep {settings.keep}: base {base.name} has {depth} layers; keep fewer")
    scored = _scored_shards(settings, base)
    model, attention, fit = _fitted(settings, base)
    kept = _worst(fit.relative_errors, settings.keep)
    kl: dict[str, float] = {}
    by_layer: dict[int, float] = {}
    compared = 0
    if scored is not None:
        with Progress("select", None) as progress:
            bf16 = computes_in_bf16(settings.dtype)
            tries = KeptLayers(model, attention, scored, settings.score_tokens, settings.batch_size, bf16, progress)
            if settings.score != "error":
                kept, by_layer = _tried(tries, settings)
            even = evenly_spaced(settings.keep, depth)
            kl = {"none": tries.kl(()), "evenly_spaced": tries.kl(even), "kept": tries.kl(kept)}
        compared = tries.tokens_read
    document = {
        "layers": [layer for layer in range(depth) if layer not in kept],
        "kept": sorted(kept),
        "num_hidden_layers": depth,
        "base": base.identity(),
        "preset": model.config.preset,
        "score": settings.score,
        "relative_errors": {layer: round(error, 4) for layer, error in fit.relative_errors.items()},
        "kl": kl,
        "kl_without_layer" if settings.score == "removal" else "kl_with_layer": by_layer,
        "tokens": {"fit": fit.tokens, "comparisons": compared},
    }
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(settings.out, document)
    return document


def evenly_spaced(keep: int, depth: int) -> list[int]:
    """The layer in the middle of each of `keep` equal blocks: 1, 4, 7 of nine layers."""
    return [(2 * block + 1) * depth // (2 * keep) for block in range(keep)]


def _scored_shards(settings: SelectSettings, base: BaseCheckpoint) -> Dataset | None:
    """The dataset that comparisons read; None without logits, which only score `error` goes without."""
    uri, flag = settings.score_shards or settings.shards, "--score-shards" if settings.score_shards else "--shards"
    info = open_shards(uri, [], flag=flag).info
    require_same_tokenizer(f"base {base.name}", base.folder, info, uri)
    if info.capture.logits == "none":
        if settings.score != "error" or settings.score_shards is not None:
            raise UsageError(
                f"{flag} {uri} holds no logits, with which --score {settings.score} compares; name shards with logits "
                "as --score-shards, or choose --score error"
            )
        return None
    return open_shards(uri, columns_of("distill", info, ()), flag=flag)


def _fitted(settings: SelectSettings, base: BaseCheckpoint) -> tuple[ArwkvForCausalLM, BaseAttention, Calibration]:
    """The student with every time mixer fitted, the attention of all layers, and what the fit found."""
    chosen = {field.name: getattr(settings, field.name) for field in dataclasses.fields(AdvancedTimeMixer)}
    model = untrained_student(base, TrainSettings(preset=settings.preset, **chosen), settings.seed)
    mixed, info = model.config.time_mix_layers, open_shards(settings.shards, []).info
    if aligned_from(info) != "tokens":
        require_fitting_hidden_states(base, info, settings.shards, mixed)
    samples = ShardSamples(open_shards(settings.shards, columns_of("align", info, mixed)))
    batches = calibration_batches(samples, [1.0], settings.batch_size, settings.calibration_tokens, settings.seed)
    device, attention = accelerator(), BaseAttention(base, mixed)
    recomputed = None if aligned_from(info) == "attention" else attention
    model, attention = model.to(device).eval(), attention.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bf16(settings.dtype)):
        return model, attention, calibrate(model, base, batches, recomputed)


def _worst(by_layer: dict[int, float], keep: int) -> list[int]:
    """The layers with the largest errors, of the fit or of the student without their attention."""
    return sorted(by_layer, key=by_layer.__getitem__, reverse=True)[:keep]


def _tried(tries: KeptLayers, settings: SelectSettings) -> tuple[list[int], dict[int, float]]:
    """The layers that the score keeps, and the KL by layer of its last round of tries.

    Rounds of `greedy` after the first try only the layers that were best in it, twice as many as are kept.
    """
    if settings.score == "removal":
        by_layer = tries.kl_without_each()
        return _worst(by_layer, settings.keep), by_layer
    by_layer = tries.kl_with_each()
    best = sorted(by_layer, key=by_layer.__getitem__)
    if settings.score == "kl":
        return best[: settings.keep], by_layer
    kept = best[:1]
    while len(kept) < settings.keep:
        by_layer = tries.kl_with_each(kept, best[: 2 * settings.keep])
        kept.append(min(by_layer, key=by_layer.__getitem__))
    return kept, by_layer
