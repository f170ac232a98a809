"""The main job, end to end, through the same commands a user types.

    make demo                                       a small teacher, trained here on the standard library's sources
    make demo TEACHER=Qwen/Qwen2.5-0.5B-Instruct    the same job on real weights

teacher -> `producer generate` (training and held-out text) -> `api serve` -> statistics over HTTP ->
`student train`, reading over HTTP -> `student eval`. Writes summary.json and report.html into the run's folder. Each
step resumes: a second run repeats only what has changed.
"""

import contextlib
import dataclasses
import json
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from arwkv_store.commands.command_line import main
from arwkv_store.errors import ArwkvError
from arwkv_store.format.hidden_names import is_hidden_column
from corpus import read_corpus, write_jsonl
from report import write_report

BIN = Path(sys.executable).parent
LONGEST_DOCUMENT = 20_000
"""Characters taken of one file, so that no single file decides what is measured."""


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """Teach a small RNN from a teacher's stored outputs, and measure how close it came."""

    teacher: str | None = None
    """Hugging Face name or folder of the teacher; default: the small one that examples/teacher.py trains."""
    preset: Literal["arwkv", "rad-rwkv7"] = "arwkv"
    """Which time mixer replaces the attention."""
    out: str = "runs/demo"
    """Folder of shards, student, summary.json and report.html."""
    text: str | None = None
    """Glob of text files to read; default: the Python standard library's sources."""
    train_characters: int = 6_000_000
    """How much training text the teacher reads for the student."""
    heldout_characters: int = 300_000
    """How much held-out text the evaluation uses."""
    max_length: int = 128
    """Tokens of a sample."""
    json: bool = False
    """Print summary.json on stdout at the end."""


def run_demo(config: DemoConfig) -> dict[str, Any]:
    """Run every step, print the table, return the summary."""
    started = time.monotonic()
    out = Path(config.out)
    teacher = config.teacher or str(_train_teacher(config))
    train_jsonl, heldout_jsonl = _write_text(config, out)
    capture = _capture(config, teacher, train_jsonl, out)
    _capture(config, teacher, heldout_jsonl, out)
    run = out / f"student-{config.preset}"
    with _serve(out / "shards") as address:
        stats = _get_json(f"{address}/v1/datasets/train/stats")
        _train_student(config, teacher, address, run)
        heldout = f"{address}/v1/datasets/heldout"
        untrained = _command("student", "eval", "--base", teacher, "--preset", config.preset, "--shards", heldout)
        aligned = _command("student", "eval", "--model", str(run / "align"), "--shards", heldout)
        distilled = _command("student", "eval", "--model", str(run), "--shards", heldout)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = _summarise(capture, stats, metrics, untrained, aligned, distilled)
    summary["seconds"] = round(time.monotonic() - started, 1)
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    _report(config, teacher, run, summary, metrics, stats, out)
    return summary


def _train_teacher(config: DemoConfig) -> Path:
    folder = Path("runs/teacher")
    words = [sys.executable, str(Path(__file__).with_name("teacher.py")), "--out", str(folder)]
    _say("teacher: a small Qwen2 model, trained on real text")
    subprocess.run([*words, "--text", config.text] if config.text else words, check=True)
    return folder


def _write_text(config: DemoConfig, out: Path) -> tuple[Path, Path]:
    """The heads of documents in a fixed shuffled order, as many as the character budgets allow."""
    corpus = read_corpus(config.text)
    out.mkdir(parents=True, exist_ok=True)
    paths = out / "train.jsonl", out / "heldout.jsonl"
    budgets = config.train_characters, config.heldout_characters
    for path, documents, budget in zip(paths, (corpus.train, corpus.heldout), budgets, strict=True):
        random.Random(1).shuffle(documents)
        taken, used = [], 0
        for document in documents:
            if used >= budget:
                break
            taken.append({**document, "text": document["text"][:LONGEST_DOCUMENT]})
            used += len(taken[-1]["text"])
        write_jsonl(path, taken)
    return paths


def _capture(config: DemoConfig, teacher: str, text: Path, out: Path) -> dict[str, Any]:
    """One teacher pass over one file; its first report is kept, since a later run finds nothing left to do."""
    _say(f"producer: {teacher} reads {text.name}")
    hidden = ["--hidden-states", "attention", "--layers", "all"] if text.stem == "train" else []
    report = _command(
        "producer", "generate", "--teacher", teacher, "--data", str(text), "--out", str(out / "shards" / text.stem),
        "--top-k", "64", "--max-length", str(config.max_length), *hidden,
    )  # fmt: skip
    kept = out / f"capture-{text.stem}.json"
    if report["shards_present_before"] < report["shards"] or not kept.exists():
        kept.write_text(json.dumps(report, indent=2) + "\n")
    first: dict[str, Any] = json.loads(kept.read_text())
    return first


def _train_student(config: DemoConfig, teacher: str, address: str, run: Path) -> None:
    _say(f"student: preset {config.preset}, reading shards over HTTP")
    rates = [] if config.teacher else ["--align-lr", "3e-3", "--distill-lr", "1e-3"]  # a small model takes large steps
    _command(
        "student", "train", "--shards", f"{address}/v1/datasets/train", "--base", teacher,
        "--preset", config.preset, "--stage", "auto", "--out", str(run), *rates,
    )  # fmt: skip


@contextlib.contextmanager
def _serve(root: Path) -> Iterator[str]:
    """`api serve` on a free port for as long as the block runs; yields its address."""
    log = root.parent / "api.log"
    words = [str(BIN / "api"), "serve", "--root", str(root), "--port", "0", "--json"]
    with (
        open(log, "w") as messages,
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=messages, text=True) as server,
    ):
        try:
            ready = server.stdout.readline() if server.stdout else ""
            if not ready:
                raise ArwkvError(f"api serve stopped with exit code {server.wait(30)}; see {log}")
            address = json.loads(ready)["url"]
            _say(f"api: serving {root} at {address}, log in {log}")
            yield address
        finally:
            server.terminate()


def _get_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def _command(*words: str) -> dict[str, Any]:
    """Run one console script with `--json`; its bars and messages pass through, its document is returned."""
    done = subprocess.run([str(BIN / words[0]), *words[1:], "--json"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ArwkvError(f"`{' '.join(words)}` failed with exit code {done.returncode}; its message is above")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def _summarise(
    capture: dict[str, Any],
    stats: dict[str, Any],
    metrics: list[dict[str, Any]],
    untrained: dict[str, Any],
    aligned: dict[str, Any],
    distilled: dict[str, Any],
) -> dict[str, Any]:
    align_losses = [m["loss"] for m in metrics if m.get("stage") == "align" and "loss" in m]
    by_column, tokens = stats["bytes_by_column"], stats["tokens"]
    hidden = sum(size for column, size in by_column.items() if is_hidden_column(column))
    return {
        "teacher_perplexity": distilled["teacher_perplexity"],
        "student_perplexity": distilled["student_perplexity"],
        "perplexity_ratio": distilled["perplexity_ratio"],
        "kl_untrained": untrained["kl"],
        "kl_align": aligned["kl"],
        "kl_distill": distilled["kl"],
        "align_loss_first": align_losses[0],
        "align_loss_last": align_losses[-1],
        "top1_agreement": distilled["top1_agreement"],
        "tokens": tokens,
        "bytes_per_token_logits": round(by_column["logits"] / tokens, 2),
        "bytes_per_token_hidden": round(hidden / tokens, 2),
        "producer_tokens_per_s": round(capture["tokens_per_s"]),
        "student_tokens_per_s": round(_tokens_per_s(metrics)),
    }


def _tokens_per_s(metrics: list[dict[str, Any]]) -> float:
    """Mean speed over both stages, from the lines that say how far each came and how fast."""
    tokens = seconds = 0.0
    before: dict[str, Any] = {}
    for line in (line for line in metrics if "tokens_per_s" in line):
        step_tokens = line["tokens"] - (before["tokens"] if before.get("stage") == line["stage"] else 0)
        tokens, seconds, before = tokens + step_tokens, seconds + step_tokens / line["tokens_per_s"], line
    return tokens / seconds


def _report(
    config: DemoConfig,
    teacher: str,
    run: Path,
    summary: dict[str, Any],
    metrics: list[dict[str, Any]],
    stats: dict[str, Any],
    out: Path,
) -> None:
    first, last = summary["align_loss_first"], summary["align_loss_last"]
    table = [
        ("held-out perplexity, teacher", f"{summary['teacher_perplexity']:.2f}"),
        ("held-out perplexity, student", f"{summary['student_perplexity']:.2f}"),
        ("student / teacher", f"{summary['perplexity_ratio']:.4f}"),
        ("KL to teacher, untrained", f"{summary['kl_untrained']:.3f} nats"),
        ("KL to teacher, after align", f"{summary['kl_align']:.4f} nats"),
        ("KL to teacher, after distill", f"{summary['kl_distill']:.4f} nats"),
        ("same top token as the teacher", f"{summary['top1_agreement']:.1%}"),
        ("align loss, first to last", f"{first:.3f} to {last:.3f} (-{1 - last / first:.0%})"),
        ("training tokens stored", f"{summary['tokens']:,}"),
        ("bytes per token, logits", f"{summary['bytes_per_token_logits']:.1f}"),
        ("bytes per token, attention outputs", f"{summary['bytes_per_token_hidden']:.1f}"),
        ("producer", f"{summary['producer_tokens_per_s']:,} tokens/s"),
        ("student", f"{summary['student_tokens_per_s']:,} tokens/s"),
        ("this run", f"{summary['seconds']:.0f} s"),
    ]  # fmt: skip
    write_report(
        out / "report.html",
        title=f"{config.preset} student of {Path(teacher).name}",
        lead="An attention model turned into an RNN, from its stored outputs alone.",
        table=table,
        metrics=metrics,
        summary=summary,
        stats=stats,
        continuations=_continue_prompts(teacher, run),
    )
    width = max(len(name) for name, _ in table)
    print("\n".join(f"  {name:<{width}}  {value}" for name, value in table), file=sys.stderr)
    print(f"\n  {out / 'summary.json'}\n  {out / 'report.html'}", file=sys.stderr)


def _continue_prompts(teacher: str, run: Path, tokens: int = 60) -> list[tuple[str, str, str]]:
    """Continuations of three prompts by teacher and student, drawn with the same random numbers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    import arwkv_student  # noqa: F401  registers the student's architecture with transformers

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    models = [AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval() for name in (teacher, run)]
    rows = []
    for prompt in ("def __init__(self, ", "import os\nimport sys\n", "    for key, value in "):
        prompt_BT = tokenizer(prompt, return_tensors="pt")["input_ids"]
        texts = []
        for model in models:
            torch.manual_seed(0)
            ids_BT = model.generate(prompt_BT, max_new_tokens=tokens, do_sample=True, temperature=0.7)
            texts.append(tokenizer.decode(ids_BT[0, prompt_BT.shape[1] :]))
        rows.append((prompt, texts[0], texts[1]))
    # The service's page shows them beside the run's curves.
    lines = (json.dumps({"prompt": prompt, "teacher": teachers, "student": own}) for prompt, teachers, own in rows)
    (run / "samples.jsonl").write_text("\n".join(lines) + "\n")
    return rows


def _say(text: str) -> None:
    print(f"\n== {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main("demo.py", "The main job, end to end.", run_demo)
