"""How few tokens a calibrated start needs, and which layers are worth their attention, at one small size.

    python examples/teacher.py --out BASE --hidden-size 128 --layers 4 --steps 450
    python benchmarks/starts.py --base BASE --train-text runs/demo/train.jsonl --heldout-text runs/demo/heldout.jsonl

Every arm is a `student train` of both stages in its own folder, so the same command continues where it was stopped.
`tokens` compares starts and ways to read a quarter of the text with the preset's own start on all of it. `layers` keeps
attention in one layer of four: evenly spaced, in the last of each block, and as `student select` chooses. `published`
compares with RADLADS' recipe (arXiv 2505.03005) at equal tokens, preset `rad-rwkv7`.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from arwkv_store.commands.command_line import main
from arwkv_student.settings import TrainSettings


@dataclasses.dataclass(frozen=True)
class StartsConfig:
    """Compare starts by the tokens they need, and kept layers at equal tokens."""

    base: Path
    """The checkpoint that the students start from, and their teacher."""
    train_text: Path
    """JSONL of documents, field `text`."""
    heldout_text: Path
    """The same, of other documents."""
    out: Path = Path("runs/starts")
    """Folder of shards and runs."""
    only: Literal["tokens", "layers", "published"] | None = None
    """One of the comparisons; default: all."""
    preset: Literal["arwkv", "rad-rwkv7"] = "arwkv"
    """The kind of time mixer."""
    tokens: int = 200_000
    """Tokens of each stage with the preset's own start, and of each stage of a hybrid."""
    heldout_tokens: int = 10_240
    """Tokens to evaluate on."""
    context: int = 128
    """Tokens of a sample."""
    batch_size: int = 16
    """Samples of a step, where an arm does not say otherwise."""
    align_lr: float = 3e-3
    """Peak learning rate of stage 1."""
    distill_lr: float = 1e-3
    """Peak learning rate of stage 2."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of weights and order."""
    json: bool = False
    """Print the figures as one JSON document."""


def starts(config: StartsConfig) -> dict[str, Any]:
    """Make the shards, train every arm, print a table in Markdown."""
    _make_shards(config)
    figures: dict[str, dict[str, list[dict[str, float]]]] = {}
    for kind, arms in (("tokens", _by_tokens), ("layers", _by_layers), ("published", _published)):
        if config.only in (None, kind):
            figures[kind] = {}
            for seed in config.seeds:
                for name, settings in arms(config).items():
                    found = _train(config, f"{kind}-{name}-seed{seed}", {**settings, "seed": seed})
                    figures[kind].setdefault(name, []).append(found)
                    print(f"{kind}: {name}: seed {seed}: {json.dumps(found)}", file=sys.stderr, flush=True)
    (config.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    if not config.json:
        for arms_of_kind in figures.values():
            print(
                "| | tokens read | KL after stage 1 | KL after stage 2 | ratio of perplexities |\n|---|---|---|---|---|"
            )
            for name, runs in arms_of_kind.items():
                means = {key: sum(run[key] for run in runs) / len(runs) for key in runs[0]}
                fidelity = " | ".join(f"{means[key]:.4f}" for key in ("kl_1", "kl_2", "ratio"))
                print(f"| {name} | {means['tokens']:,.0f} | {fidelity} |")
    return figures


def _by_tokens(config: StartsConfig) -> dict[str, dict[str, Any]]:
    """Settings by the arm's name."""
    quarter = config.tokens // 4
    few = {"init": "calibrated", "tokens": quarter, "shards": "quarter"}
    return {
        "preset's start, all": {"tokens": config.tokens},
        "calibrated, all": {"init": "calibrated", "tokens": config.tokens},
        "preset's start, a quarter": {"tokens": quarter, "shards": "quarter"},
        "calibrated, a quarter": few,
        "calibrated, a quarter, smaller steps": {**few, "batch_size": config.batch_size // 4},
        "calibrated, a quarter, smaller steps, muon": {
            **few,
            "batch_size": config.batch_size // 4,
            "optimizer": "muon",
        },
        "calibrated, a quarter, four times": {**few, "tokens": config.tokens},
    }


def _by_layers(config: StartsConfig) -> dict[str, dict[str, Any]]:
    """The same; two ways that keep the same layers are one arm."""
    from arwkv_student.selection.select import evenly_spaced, select
    from arwkv_student.selection.settings import SelectSettings

    depth = json.loads((config.base / "config.json").read_text())["num_hidden_layers"]
    keep = depth // 4
    ways = {"evenly spaced": evenly_spaced(keep, depth), "last of each block": list(range(3, depth, 4))}
    for score in ("error", "kl", "greedy"):
        file = config.out / f"layers-{score}.json"
        if not file.exists():
            shards = str(config.out / "shards" / "train")
            fit = {"keep": keep, "out": file, "score": score, "preset": config.preset}
            select(SelectSettings(base=str(config.base), shards=shards, **fit))
        ways[f"select {score}"] = json.loads(file.read_text())["kept"]
    names: dict[tuple[int, ...], list[str]] = {}
    for way, kept in ways.items():
        names.setdefault(tuple(kept), []).append(way)
    common = {"init": "calibrated", "tokens": config.tokens}
    return {"none": common} | {
        f"{', '.join(same)}: {' '.join(map(str, kept))}": {
            **common,
            "layers": tuple(layer for layer in range(depth) if layer not in kept),
        }
        for kept, same in names.items()
    }


def _published(config: StartsConfig) -> dict[str, dict[str, Any]]:
    """RADLADS: 100M tokens, the rate falling from 1e-3 to 1e-5; then 250M, flat 1e-4, of the rest of the model 1e-5."""
    first = 2 * config.tokens * 100 // 350
    theirs = {"preset": "rad-rwkv7", "align_tokens": first, "distill_tokens": 2 * config.tokens - first}
    rates = {"align_lr": 1e-3, "distill_lr": 1e-4, "rest_lr": 1e-5}
    ours = {"preset": "rad-rwkv7", "init": "calibrated", "tokens": config.tokens}
    return {
        "RADLADS": {**theirs, **rates, "flat": True},
        "RADLADS, our rates": theirs,
        "calibrated": ours,
        "calibrated, smaller steps": {**ours, "batch_size": config.batch_size // 4},
    }


def _make_shards(config: StartsConfig) -> None:
    from recipe_shards import Kept, Text, make_datasets

    whole = Kept("top-k", hidden="attention")
    for name, text, tokens, way in (
        ("train", config.train_text, config.tokens, whole),
        ("quarter", config.train_text, config.tokens // 4, whole),
        ("heldout", config.heldout_text, config.heldout_tokens, Kept("top-k", 256)),
    ):
        make_datasets(Text.of(config.base, text, tokens, config.context), {name: way}, config.out / "shards")


def _train(config: StartsConfig, name: str, arm: Mapping[str, Any]) -> dict[str, float]:
    """Both stages; in one run, unless the second stage has a flat rate."""
    from arwkv_student.training.pipeline import train

    out = config.out / "".join(letter if letter.isalnum() else "-" for letter in name)
    settings: dict[str, Any] = {
        "preset": config.preset,
        "batch_size": config.batch_size,
        "align_lr": config.align_lr,
        "distill_lr": config.distill_lr,
        "shards": "train",
        "flat": False,
    } | arm  # fmt: skip
    flat, shards = settings.pop("flat"), config.out / "shards" / settings.pop("shards")
    settings |= {"base": str(config.base), "shards": (str(shards),), "workers": 0}
    settings["eval_shards"] = str(config.out / "shards" / "heldout")
    if flat:
        aligned = {"stage": "align", "out": out / "align"}
        then = {"stage": "distill", "out": out / "distill", "start_from": str(out / "align"), "lr_floor": 1.0}
        runs = [train(TrainSettings(**settings | run))["stages"] for run in (aligned, then)]
        stages = runs[0] | runs[1]
    else:
        stages = train(TrainSettings(**settings, out=out))["stages"]
    first, second = stages["align"], stages["distill"]
    return {
        "tokens": first["tokens"] + second["tokens"],
        "kl_1": first["eval"]["kl"],
        "kl_2": second["eval"]["kl"],
        "ratio": second["eval"]["perplexity_ratio"],
    }


if __name__ == "__main__":
    main("starts.py", "Starts by the tokens they need, and kept layers.", starts)
