"""Presets and ablations on real text, several seeds: how close each comes to its teacher, stage by stage.

    python examples/teacher.py --out BASE --hidden-size 128 --layers 3
    python benchmarks/recipe.py --base BASE --larger runs/teacher --train-text runs/demo/train.jsonl \
        --heldout-text runs/demo/heldout.jsonl --out runs/recipe

Every arm is a `student train` of its own folder, so the same command continues where it was stopped. Arms that share
stage 1 share its run. `stage 2 only` spends the steps of both stages on stage 2; the rows at equal bytes differ in
nothing but what of the teacher's distribution is stored, and `live teacher` stores nothing of it.
"""

import contextlib
import dataclasses
import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from arwkv_store.commands.command_line import main
from arwkv_student.settings import TrainSettings


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of the table."""

    stage_1: str | None
    """Which of `STAGE_1` it starts from; None spends those steps on stage 2 as well."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shards: str = "attention"
    heldout: str = "heldout"
    live: bool = False
    """Stage 2 takes the tokens alone from the shards, and the distribution from the teacher itself."""


STAGE_1: dict[str, dict[str, Any]] = {
    "arwkv": {"preset": "arwkv"},
    "gate": {"preset": "arwkv-gate-active-mlp"},
    "rad": {"preset": "rad-rwkv7"},
    "rad-random": {"preset": "rad-rwkv7", "init_from_teacher": False},
}
RAD = STAGE_1["rad"]
ARMS = {
    "`arwkv`": Arm("arwkv", STAGE_1["arwkv"]),
    "`arwkv-active-mlp`": Arm("arwkv", {"preset": "arwkv-active-mlp"}),
    "`arwkv-gate-active-mlp`": Arm("gate", STAGE_1["gate"]),
    "`arwkv-from-32b`: a larger teacher's logits": Arm(
        "arwkv", {"preset": "arwkv-from-32b"}, "larger-teacher", "larger-heldout"
    ),
    "`rad-rwkv7`": Arm("rad", RAD),
    "`rad-rwkv7`, MLPs frozen": Arm("rad", {**RAD, "trained": "frozen-mlp"}),
    "`rad-rwkv7`, random q/k/v/o": Arm("rad-random", STAGE_1["rad-random"]),
    "`arwkv`, stage 2 only": Arm(None, STAGE_1["arwkv"]),
    "`rad-rwkv7`, stage 2 only": Arm(None, RAD),
    "`rad-rwkv7`, live teacher": Arm("rad", RAD, live=True),
    "`rad-rwkv7`, exact": Arm("rad", RAD, "exact"),
    "`rad-rwkv7`, adaptive": Arm("rad", RAD, "adaptive"),
    "`rad-rwkv7`, top-k": Arm("rad", RAD, "top-k"),
    "`rad-rwkv7`, sampled": Arm("rad", RAD, "sampled"),
    "`rad-rwkv7`, hybrid": Arm("rad", RAD, "hybrid"),
}
COLUMNS = {
    "align loss": "fall",
    "KL after stage 1": "kl_1",
    "KL after stage 2": "kl_2",
    "ratio of perplexities": "ratio",
    "bytes/token": "bytes",
}


@dataclasses.dataclass(frozen=True)
class RecipeConfig:
    """Compare presets, ablations and captures at one size and budget."""

    base: Path
    """The checkpoint that the students start from, and the teacher of all arms but one."""
    larger: Path
    """A larger teacher with the base's tokenizer."""
    train_text: Path
    """JSONL of documents, field `text`."""
    heldout_text: Path
    """The same, of other documents."""
    out: Path = Path("runs/recipe")
    """Folder of shards and runs."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights and order."""
    steps: int = 200
    """Steps of each stage."""
    batch_size: int = 16
    """Samples of a step."""
    context: int = 128
    """Tokens of a sample."""
    heldout_tokens: int = 20_480
    """Tokens to evaluate on."""
    align_lr: float = 3e-3
    """Peak learning rate of stage 1."""
    distill_lr: float = 1e-3
    """Peak learning rate of stage 2."""
    json: bool = False
    """Print the figures as one JSON document."""


def recipe(config: RecipeConfig) -> dict[str, Any]:
    """Make the shards, train every arm with every seed, print a table in Markdown."""
    _make_shards(config)
    figures: dict[str, list[dict[str, float | None]]] = {name: [] for name in ARMS}
    for seed in config.seeds:
        for name, arm in ARMS.items():
            figures[name].append(_run(config, arm, seed))
            print(f"seed {seed}: {name}: {json.dumps(figures[name][-1])}", file=sys.stderr, flush=True)
        (config.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    if not config.json:
        print(f"| | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
        for name, runs in figures.items():
            print(f"| {name} | {' | '.join(_spread(runs, key) for key in COLUMNS.values())} |")
    return figures


def _make_shards(config: RecipeConfig) -> None:
    from recipe_shards import EXACT, Kept, Text, equal_bytes, make_datasets

    chosen = config.out / "equal-bytes.json"
    whole = Kept("top-k", hidden="attention")
    tokens = config.steps * config.batch_size * config.context
    for teacher, train, heldout in (
        (config.base, "attention", "heldout"),
        (config.larger, "larger-teacher", "larger-heldout"),
    ):
        is_base = teacher == config.base
        text = Text.of(teacher, config.train_text, tokens, config.context)
        ways = {train: whole if is_base else Kept("top-k")}
        if is_base:
            if not chosen.exists():
                config.out.mkdir(parents=True, exist_ok=True)
                parameters = {name: way.parameter for name, way in equal_bytes(text).items()}
                chosen.write_text(json.dumps(parameters, indent=2) + "\n")
            ways |= {name: Kept(name, parameter) for name, parameter in json.loads(chosen.read_text()).items()}
            ways["exact"] = EXACT
        make_datasets(text, ways, config.out / "shards")
        held_out = Text.of(teacher, config.heldout_text, config.heldout_tokens, config.context)
        make_datasets(held_out, {heldout: Kept("top-k", 256)}, config.out / "shards")


def _run(config: RecipeConfig, arm: Arm, seed: int) -> dict[str, float | None]:
    from recipe_shards import bytes_per_token

    first = _align(config, arm.stage_1, seed) if arm.stage_1 else {}
    name = next(name for name, other in ARMS.items() if other is arm)
    folder = "".join(letter if letter.isalnum() else "-" for letter in name).strip("-")
    steps = config.steps if arm.stage_1 else 2 * config.steps
    settings = _settings(config, config.out / f"{folder}-seed{seed}", arm.heldout, seed)
    start = None if arm.stage_1 is None else str(config.out / f"align-{arm.stage_1}-seed{seed}")
    with _live_teacher(config.base) if arm.live else contextlib.nullcontext():
        second = _train(
            dataclasses.replace(
                settings,
                **arm.settings,
                stage="distill",
                shards=(str(config.out / "shards" / arm.shards),),
                start_from=start,
                steps=steps,
            )
        )["distill"]["eval"]
    return {
        "fall": first.get("fall"),
        # Another teacher's held-out text says nothing about this one's.
        "kl_1": first.get("kl") if arm.heldout == "heldout" else None,
        "kl_2": second["kl"],
        "ratio": second["perplexity_ratio"],
        "bytes": None if arm.live else bytes_per_token(config.out / "shards" / arm.shards),
    }


@contextlib.contextmanager
def _live_teacher(folder: Path) -> Iterator[None]:
    """Stage 2's loss becomes the KL to this teacher's fp32 logits, over the whole vocabulary."""
    import torch
    from transformers import Qwen2ForCausalLM

    from offline_vs_online import live_kl

    teacher = Qwen2ForCausalLM.from_pretrained(folder).eval()

    def loss(batch: Mapping[str, Any], objective: Any) -> Any:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            logits_BTV = teacher(batch["input_ids"], use_cache=False).logits
        return live_kl(logits_BTV, batch["predicts"], objective.vocab_size)

    with mock.patch("arwkv_student.training.distill.distill_loss", loss):
        yield


def _align(config: RecipeConfig, kind: str, seed: int) -> dict[str, float]:
    settings = _settings(config, config.out / f"align-{kind}-seed{seed}", "heldout", seed)
    summary = _train(
        dataclasses.replace(
            settings,
            **STAGE_1[kind],
            stage="align",
            shards=(str(config.out / "shards" / "attention"),),
            steps=config.steps,
        )
    )["align"]
    lines = [json.loads(line) for line in (settings.out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    return {"fall": 1 - losses[-1] / losses[0], "kl": summary["eval"]["kl"]}


def _settings(config: RecipeConfig, out: Path, heldout: str, seed: int) -> TrainSettings:
    return TrainSettings(
        base=str(config.base),
        out=out,
        eval_shards=str(config.out / "shards" / heldout),
        batch_size=config.batch_size,
        align_lr=config.align_lr,
        distill_lr=config.distill_lr,
        seed=seed,
        save_every=100,
        workers=0,
    )


def _train(settings: TrainSettings) -> dict[str, Any]:
    from arwkv_student.training.pipeline import train

    stages: dict[str, Any] = train(settings)["stages"]
    return stages


def _spread(runs: list[dict[str, float | None]], key: str) -> str:
    """Mean ± standard deviation over seeds; the fall of the loss in per cent."""
    values = [value for run in runs if (value := run[key]) is not None]
    if not values:
        return "–"
    mean, spread = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
    if key == "bytes":
        return f"{mean:.0f}"
    return f"−{mean:.1%} ± {spread:.1%}" if key == "fall" else f"{mean:.4f} ± {spread:.4f}"


if __name__ == "__main__":
    main("recipe", "Compare presets, ablations and captures of the student.", {"run": recipe}, ["run", *sys.argv[1:]])
