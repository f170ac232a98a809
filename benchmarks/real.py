"""How close a student of a real pretrained model comes, by tokens read: SmolLM2-135M-Instruct, held-out text.

    python benchmarks/real.py [--train-tokens 60000] [--chat-tokens 20000] [--json-out runs/bench/real.json]

The demo's recipe with evaluations along the way: teacher, text and shards as in examples/demo.py, align and distill
of one epoch each. A row is one evaluation; tokens count both stages. On a GPU: --train-tokens 20000000 --batch-size 64.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Literal

from arwkv_kernels.precision import machine
from arwkv_store.commands.command_line import main
from figures import print_table, write_json

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import demo


@dataclasses.dataclass(frozen=True)
class RealConfig:
    """Divergence of a SmolLM2-135M student from its teacher over the tokens that it read."""

    preset: Literal["arwkv", "rad-rwkv7"] = "rad-rwkv7"
    """Which time mixer replaces the attention."""
    train_tokens: int = demo.REAL.train_tokens
    """Tokens of text."""
    chat_tokens: int = demo.REAL.chat_tokens
    """Tokens of conversations beside them."""
    batch_size: int = demo.REAL.batch_size
    """Samples of at most 256 tokens in a step."""
    evaluations: int = 5
    """Evaluations of each stage."""
    out: str = "runs/real"
    """Folder of shards and student; the same command again continues."""
    json_out: Path | None = None
    """Write the figures to this file."""
    json: bool = False
    """Print the figures as one JSON document."""


def measure(config: RealConfig) -> dict[str, Any]:
    """Train once, and return an entry for every evaluation."""
    sizes = {name: getattr(config, name) for name in ("preset", "train_tokens", "chat_tokens")}
    job = demo.plan(demo.DemoConfig(teacher="smollm2", out=config.out, **sizes))
    demo.script("smollm2.py", "--out", job.teacher)
    texts = demo.write_text(job)
    captures = {name: demo.capture(job, text) for name, text in texts.items()}
    trained = [name for name in texts if name != "heldout"]
    steps = sum(captures[name]["corpus"]["samples"] for name in trained) // config.batch_size
    demo.train_student(
        job,
        [str(job.out / "shards" / name) for name in trained],
        *["--eval-shards", str(job.out / "shards" / "heldout")],
        *["--eval-every", str(max(1, steps // config.evaluations)), "--batch-size", str(config.batch_size)],
    )
    rows = _rows([json.loads(line) for line in (job.run / "metrics.jsonl").read_text().splitlines()])
    print_table(f"{config.preset} student of SmolLM2-135M-Instruct, held-out text", rows)
    results = {"machine": machine(), "curve": rows}
    write_json(config.json_out, results)
    return results


def _rows(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row an evaluation; the tokens of stage distill follow those of stage align."""
    before = max((line["tokens"] for line in metrics if line["stage"] == "align" and "tokens" in line), default=0)
    return [
        {
            "stage": line["stage"],
            "tokens": line["tokens"] + (before if line["stage"] == "distill" else 0),
            "KL, nats": line["eval_kl"],
            "perplexity ratio": line["eval_perplexity_ratio"],
            "top-1 agreement": line["eval_top1_agreement"],
        }
        for line in metrics
        if "eval_kl" in line
    ]


if __name__ == "__main__":
    main("real.py", "Divergence over tokens on a real model.", measure)
