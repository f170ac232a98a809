"""Presets and ablations from one pair of datasets, several seeds: KL to the teacher after each stage.

    python benchmarks/recipe.py --shards runs/demo/shards/train --heldout runs/demo/shards/heldout --base runs/teacher

Every run is a `student train` of its own folder, so the same command continues where it was stopped. `stage-2-only`
spends the tokens of both stages on stage 2; `random-qkvo` is rad-rwkv7 without the base's projections; `frozen-mlp` is
rad-rwkv7 with its MLPs left alone in stage 2.
"""

import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from arwkv_store.command_line import main
from arwkv_student.settings import TrainSettings

VARIANTS: dict[str, dict[str, Any]] = {
    "arwkv": {},
    "arwkv-active-mlp": {"preset": "arwkv-active-mlp"},
    "arwkv-gate-active-mlp": {"preset": "arwkv-gate-active-mlp"},
    "rad-rwkv7": {"preset": "rad-rwkv7"},
    "rad-rwkv7-frozen-mlp": {"preset": "rad-rwkv7", "trained": "frozen-mlp"},
    "rad-rwkv7-random-qkvo": {"preset": "rad-rwkv7", "init_from_teacher": False},
    "arwkv-stage-2-only": {"stage": "distill"},
    "rad-rwkv7-stage-2-only": {"preset": "rad-rwkv7", "stage": "distill"},
}


@dataclasses.dataclass(frozen=True)
class RecipeConfig:
    """Compare presets and ablations at one size and budget."""

    shards: str
    """Training dataset with attention outputs and logits."""
    heldout: str
    """Held-out dataset with logits."""
    base: str
    """The checkpoint that the students start from."""
    out: Path = Path("runs/recipe")
    """Folder of the runs."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Which to run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each."""
    tokens: int = 2_000_000
    """Tokens of each stage."""
    align_lr: float = 3e-3
    """Peak learning rate of stage 1."""
    distill_lr: float = 1e-3
    """Peak learning rate of stage 2."""
    json: bool = False
    """Print the figures as one JSON document."""


def recipe(config: RecipeConfig) -> dict[str, Any]:
    """Train every variant with every seed and print a table in Markdown."""
    figures = {
        name: [_run(config, name, seed) for seed in config.seeds] for name in config.variants if name in VARIANTS
    }
    if not config.json:
        print(
            "| variant | align loss | KL after stage 1 | KL after stage 2 | perplexity ratio |\n|---|---|---|---|---|"
        )
        for name, runs in figures.items():
            print(f"| {name} | {' | '.join(_spread(runs, key) for key in ('fall', 'kl_1', 'kl_2', 'ratio'))} |")
    return figures


def _run(config: RecipeConfig, name: str, seed: int) -> dict[str, float | None]:
    from arwkv_student.train import train

    both = 2 if VARIANTS[name].get("stage") == "distill" else 1
    settings = TrainSettings(
        shards=config.shards,
        base=config.base,
        out=config.out / f"{name}-seed{seed}",
        eval_shards=config.heldout,
        tokens=config.tokens * both,
        align_lr=config.align_lr,
        distill_lr=config.distill_lr,
        seed=seed,
    )
    stages = train(dataclasses.replace(settings, **VARIANTS[name]))["stages"]
    lines = [json.loads(line) for line in (settings.out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["stage"] == "align" and "loss" in line]
    return {
        "fall": 1 - losses[-1] / losses[0] if losses else None,
        "kl_1": stages["align"]["eval"]["kl"] if "align" in stages else None,
        "kl_2": stages["distill"]["eval"]["kl"],
        "ratio": stages["distill"]["eval"]["perplexity_ratio"],
    }


def _spread(runs: list[dict[str, float | None]], key: str) -> str:
    """Mean ± standard deviation over seeds; the fall of the loss in per cent."""
    values = [value for run in runs if (value := run[key]) is not None]
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"−{statistics.mean(values):.0%}" if key == "fall" else f"{statistics.mean(values):.4f}{spread}"


if __name__ == "__main__":
    main("recipe", "Compare presets and ablations of the student.", {"run": recipe}, ["run", *sys.argv[1:]])
