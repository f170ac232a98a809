"""What students of a pretrained base recall of texts longer than those they learned from, and what they lose in SFT.

    python examples/smollm2.py --out runs/smollm2
    OMP_NUM_THREADS=1 python benchmarks/recall.py --base runs/smollm2 [--only "evenly spaced"] [--out runs/recall]

Text is examples/corpus.py's, and made-up facts amid filler sentences with a question at their end, as in
`student eval --suite long` but with other draws; samples have `context` tokens. An arm keeps attention in some layers:
none, evenly spaced, or as `student select --score removal` chooses by the answers to questions about texts of the
longest of `lengths`. Each goes through align, distill and twice through sft
on conversations: of all parameters, and with `--trained spare-recall`. The same command continues where it was stopped.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from arwkv_kernels.precision import machine
from arwkv_store.commands.command_line import main
from figures import print_table, write_json

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from corpus import conversations, read_corpus, shuffled, within, write_jsonl
from demo import command

HELDOUT_TOKENS, CHAT_TOKENS = 10_000, 100_000


@dataclasses.dataclass(frozen=True)
class RecallConfig:
    """Recall of long texts by students with and without layers that keep attention, before and after SFT."""

    base: Path
    """A pretrained checkpoint, which is also the teacher."""
    out: Path = Path("runs/recall")
    """Folder of text, shards and students."""
    only: Literal["none", "evenly spaced", "chosen"] | None = None
    """One arm; default: all."""
    keep: int = 7
    """Layers that keep attention, where any do."""
    preset: Literal["arwkv", "rad-rwkv7"] = "rad-rwkv7"
    """The kind of time mixer."""
    context: int = 256
    """Tokens of a sample."""
    lengths: tuple[int, ...] = (256, 1024)
    """Tokens of the texts that are asked about."""
    questions: int = 50
    """Of each task and length."""
    text_tokens: int = 400_000
    """Of text to draw from."""
    score_questions: int = 12
    """Questions by whose answers layers are chosen."""
    facts: int = 800
    """Samples of made-up facts to draw from."""
    facts_share: float = 0.3
    """Of the tokens that are read."""
    align_tokens: int = 150_000
    """Tokens of stage 1."""
    distill_tokens: int = 200_000
    """Tokens of stage 2."""
    sft_steps: int = 100
    """Steps of SFT, of four conversations each."""
    json_out: Path | None = None
    """Write the figures to this file."""
    json: bool = False
    """Print the figures as one JSON document."""


def measure(config: RecallConfig) -> dict[str, Any]:
    """Train and question every arm; one row a student, the teacher first."""
    make_shards(config)
    rows = [{"kept": "all: the teacher", "stage": "", **_recall(config, config.base)}]
    for arm in ("none", "evenly spaced", "chosen"):
        if config.only in (None, arm):
            rows += _arm(config, arm)
    print_table("exact answers", rows)
    results = {"machine": machine(), "rows": rows}
    write_json(config.json_out, results)
    return results


def make_shards(config: RecallConfig) -> None:
    """The text, and the teacher's logits of it."""
    from transformers import AutoTokenizer

    from arwkv_student.long.tasks import question

    config.out.mkdir(parents=True, exist_ok=True)
    tokenizer, corpus = AutoTokenizer.from_pretrained(config.base), read_corpus(None, prose=True)

    def asked(count: int, tokens: int, seed: int) -> Iterator[dict[str, str]]:
        for number in range(count):
            one = question(("single", "multi-key")[number % 2], tokens, number, seed, tokenizer)
            answer = [token for item in one.answer for token in item]
            yield {"prompt": tokenizer.decode(one.ids), "completion": tokenizer.decode(answer), "source": "facts"}

    facts = list(asked(config.facts, config.context, 12345))
    texts = {
        "text": list(within(config.text_tokens, shuffled(corpus.train), tokenizer)),
        "facts": [{"text": fact["prompt"] + fact["completion"], "source": "facts"} for fact in facts],
        "answers": list(asked(config.score_questions, max(config.lengths), 54321)),
        "heldout": list(within(HELDOUT_TOKENS, shuffled(corpus.heldout), tokenizer)),
        "chat": list(within(CHAT_TOKENS, shuffled(list(conversations(corpus.train))), tokenizer)),
    }
    for name, documents in texts.items():
        write_jsonl(config.out / f"{name}.jsonl", documents)
        if name != "chat":
            words = ["--data", str(config.out / f"{name}.jsonl"), "--out", str(config.out / "shards" / name)]
            longest = 2 * max(config.lengths) if name == "answers" else config.context
            length = ["--top-k", "64", "--max-length", str(longest)]
            command("producer", "generate", "--teacher", str(config.base), *words, *length)


def _arm(config: RecallConfig, arm: str) -> list[dict[str, Any]]:
    run = config.out / arm.replace(" ", "-")
    shards = config.out / "shards"
    common = [
        "--base", str(config.base), "--shards", str(shards / "text"), "--shards", str(shards / "facts"),
        "--shard-weights", str(1 - config.facts_share), str(config.facts_share), "--batch-size", "2", "--workers", "0",
    ]  # fmt: skip
    aligned = run.with_name(f"{run.name}-aligned")
    command(
        "student", "train", "--stage", "align", *common, "--preset", config.preset, *_layers(config, arm),
        "--init", "calibrated", "--calibration-tokens", "10000",
        "--align-tokens", str(config.align_tokens), "--align-lr", "2e-3", "--out", str(aligned),
    )  # fmt: skip
    done = command(
        "student", "train", "--stage", "distill", *common, "--start-from", str(aligned),
        "--distill-tokens", str(config.distill_tokens), "--distill-lr", "4e-4", "--rest-lr", "4e-5",
        "--eval-shards", str(shards / "heldout"), "--out", str(run),
    )  # fmt: skip
    kl = done["stages"]["distill"]["eval"]["kl"]
    rows = [{"kept": arm, "stage": f"distill, KL {kl:.3f}", **_recall(config, run)}]
    for trained in ("all", "spare-recall"):
        tuned = run.with_name(f"{run.name}-sft-{trained}")
        command(
            "student", "train", "--stage", "sft", "--start-from", str(run), "--data", str(config.out / "chat.jsonl"),
            "--trained", trained, "--steps", str(config.sft_steps), "--batch-size", "1", "--gradient-accumulation", "4",
            "--max-length", "1024", "--out", str(tuned),
        )  # fmt: skip
        rows.append({"kept": arm, "stage": f"sft, --trained {trained}", **_recall(config, tuned)})
    return rows


def _layers(config: RecallConfig, arm: str) -> list[str]:
    """The words that name the layers that mix time."""
    if arm == "none":
        return []
    if arm == "chosen":
        file = config.out / "layers.json"
        if not file.exists():
            shards = config.out / "shards"
            words = ["--base", str(config.base), "--shards", str(shards / "text"), "--out", str(file)]
            fit = ["--preset", config.preset, "--keep", str(config.keep), "--calibration-tokens", "10000"]
            tokens = ["--score-tokens", str(config.score_questions * max(config.lengths)), "--batch-size", "2"]
            command(
                "student",
                "select",
                *words,
                *fit,
                "--score",
                "removal",
                "--score-shards",
                str(shards / "answers"),
                *tokens,
            )
        return ["--layers", str(file)]
    from arwkv_student.selection.select import evenly_spaced

    depth = json.loads((config.base / "config.json").read_text())["num_hidden_layers"]
    kept = evenly_spaced(config.keep, depth)
    return ["--layers", *(str(layer) for layer in range(depth) if layer not in kept)]


def _recall(config: RecallConfig, model: Path) -> dict[str, float]:
    """Share of exact answers by task and length."""
    asked = ["--long-tasks", "single", "multi-key", "--samples", str(config.questions), "--batch-size", "4"]
    lengths = map(str, config.lengths)
    found = command("student", "eval", "--model", str(model), "--suite", "long", *asked, "--lengths", *lengths)["long"]
    return {f"{task} {length}": shares["exact"] for task, by in found.items() for length, shares in by.items()}


if __name__ == "__main__":
    main("recall.py", "Recall of long texts by students.", measure)
