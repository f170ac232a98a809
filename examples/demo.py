"""The main job, end to end, through the same commands a user types.

    make demo                     a small teacher, trained here on the standard library's sources
    make demo TEACHER=smollm2     a real pretrained teacher, SmolLM2-135M-Instruct
    make demo TEACHER=Qwen/Qwen2.5-0.5B-Instruct    any other, by folder or Hub name

teacher -> `producer generate` (training and held-out text) -> `api serve` -> statistics over HTTP ->
`student train`, reading over HTTP -> `student eval`. Writes summary.json and report.html into the run's folder. Each
step resumes: a second run repeats only what has changed. Every budget is a number of tokens: a slower machine gets the
same result later.
"""

import contextlib
import dataclasses
import itertools
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pace
from answers import continuations
from arwkv_kernels.precision import machine
from arwkv_store import open_dataset
from arwkv_store.commands.command_line import main
from arwkv_store.errors import ArwkvError
from arwkv_store.format.hidden_names import is_hidden_column
from corpus import conversations, read_corpus, shuffled, within, write_jsonl
from report import write_report
from smollm2 import NAME as SMOLLM2
from teacher import STEP_TOKENS, TeacherConfig, bigram_perplexity, qwen2_config

BIN = Path(sys.executable).parent


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What fits a teacher: token budgets and the student's recipe."""

    preset: str
    train_tokens: int
    chat_tokens: int
    heldout_tokens: int
    max_length: int
    batch_size: int
    align_lr: float
    distill_lr: float
    rest_lr: float
    """Peak rate of stage distill for what is not a time mixer."""
    align_share: float
    """Of the training tokens, read by stage align; a calibrated start needs no more."""

    @property
    def align_tokens(self) -> int:
        """Tokens of stage align."""
        return round(self.align_share * (self.train_tokens + self.chat_tokens))


SMALL = Sizes("arwkv", 1_350_000, 0, 110_000, 128, 16, 3e-3, 1e-3, 1e-3, 4 / 9)  # a small model takes large steps
REAL = Sizes("rad-rwkv7", 60_000, 20_000, 10_000, 256, 2, 2e-3, 4e-4, 4e-5, 1.0)


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """Teach an RNN from a teacher's stored outputs, and measure how close it came."""

    teacher: str | None = None
    """smollm2, or a Hugging Face name or folder; default: the small one that examples/teacher.py trains."""
    preset: Literal["auto", "arwkv", "rad-rwkv7"] = "auto"
    """Which time mixer replaces the attention; auto: arwkv for the small teacher, rad-rwkv7 for a real one."""
    out: str | None = None
    """Folder of shards, student, summary.json and report.html; default: runs/demo, or runs/demo-TEACHER."""
    text: str | None = None
    """Glob of text files to read; default: the Python standard library's sources, for a real teacher prose too."""
    train_tokens: int | None = None
    """Tokens of text that the teacher reads for the student; default: 1,350,000, for a real teacher 60,000."""
    chat_tokens: int | None = None
    """Tokens of conversations in addition, for a teacher with a chat template; default: 20,000."""
    heldout_tokens: int | None = None
    """Tokens of held-out text that the evaluation uses; default: 110,000, for a real teacher 10,000."""
    max_length: int | None = None
    """Tokens of a sample; default: 128, for a real teacher 256."""
    json: bool = False
    """Print summary.json on stdout at the end."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One demo: its teacher, what it costs, and where its files go."""

    teacher: str
    sizes: Sizes
    out: Path
    text: str | None
    is_small: bool

    @property
    def run(self) -> Path:
        """The student's folder."""
        return self.out / f"student-{self.sizes.preset}"


def run_demo(config: DemoConfig) -> dict[str, Any]:
    """Run every step, print the table, return the summary."""
    started = time.monotonic()
    job = plan(config)
    if config.teacher == "smollm2":
        script("smollm2.py", "--out", job.teacher)
    _say_estimate(job)
    if job.is_small:
        _say("teacher: a small Qwen2 model, trained on real text")
        script("teacher.py", "--out", job.teacher, *(["--text", job.text] if job.text else []))
    texts = write_text(job)
    capture(job, texts.pop("heldout"))
    bigram = _require_better_than_bigram(job, texts["train"])
    captures = {name: capture(job, text) for name, text in texts.items()}
    with _serve(job.out / "shards") as address:
        stats = _get_json(f"{address}/v1/datasets/train/stats")
        train_student(job, [f"{address}/v1/datasets/{name}" for name in texts])
        evaluations = _evaluate(job, f"{address}/v1/datasets/heldout")
    metrics = [json.loads(line) for line in (job.run / "metrics.jsonl").read_text().splitlines()]
    summary = _summarize(captures["train"], stats, metrics, *evaluations)
    summary |= {"teacher_bigram_perplexity": round(bigram, 3), "machine": machine()}
    summary["seconds"] = round(time.monotonic() - started, 1)
    (job.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    _report(job, summary, metrics, stats)
    return summary


def plan(config: DemoConfig) -> Job:
    """What this demo is, with the sizes that fit its teacher."""
    is_small = config.teacher is None
    named = {field.name: getattr(config, field.name, None) for field in dataclasses.fields(Sizes)}
    chosen = {name: value for name, value in named.items() if value not in (None, "auto")}
    sizes = dataclasses.replace(SMALL if is_small else REAL, **chosen)
    teacher = {None: "runs/teacher", "smollm2": f"runs/{SMOLLM2}"}.get(config.teacher, config.teacher or "")
    out = config.out or ("runs/demo" if is_small else f"runs/demo-{Path(teacher).name}")
    return Job(teacher, sizes, Path(out), config.text, is_small)


def _say_estimate(job: Job) -> None:
    """Time a model of the teacher's shape for some seconds, and say how long each step will take."""
    from transformers import AutoConfig

    small, sizes = TeacherConfig(), job.sizes
    shape = qwen2_config(small, small.vocab_size, 0) if job.is_small else AutoConfig.from_pretrained(job.teacher)
    trained = sizes.train_tokens + sizes.chat_tokens
    tokens = {"capture": trained + sizes.heldout_tokens, "align": sizes.align_tokens, "distill": trained}
    tokens |= {"evaluation": 3 * sizes.heldout_tokens}
    if job.is_small:
        tokens = {"teacher": small.steps * STEP_TOKENS} | tokens
    kind = "small" if job.is_small else "real"
    minutes = pace.minutes(kind, tokens, pace.train_tokens_per_s(shape, job.sizes.batch_size * sizes.max_length))
    here = machine()
    _say(
        f"about {sum(minutes.values()):.0f} minutes on {here['cores']} cores ({here['isa']}, {here['dtype']}): "
        f"{', '.join(f'{step} {value:.0f}' for step, value in minutes.items())}; finished steps are not repeated"
    )


def script(name: str, *words: str) -> None:
    """Run one of the scripts in this folder."""
    subprocess.run([sys.executable, str(Path(__file__).with_name(name)), *words], check=True)


def write_text(job: Job) -> dict[str, Path]:
    """The JSONL file of each dataset by its name: documents in a fixed shuffled order, as many as its budget allows."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.teacher)
    corpus, sizes = read_corpus(job.text, prose=not job.is_small), job.sizes
    wanted = {"heldout": (corpus.heldout, sizes.heldout_tokens), "train": (corpus.train, sizes.train_tokens)}
    if sizes.chat_tokens and tokenizer.chat_template:
        wanted["chat"] = (list(conversations(corpus.train)), sizes.chat_tokens)
    job.out.mkdir(parents=True, exist_ok=True)
    for name, (documents, budget) in wanted.items():
        write_jsonl(job.out / f"{name}.jsonl", list(within(budget, shuffled(documents), tokenizer)))
    return {name: job.out / f"{name}.jsonl" for name in wanted}


def capture(job: Job, text: Path) -> dict[str, Any]:
    """One teacher pass over one file; its first report is kept, since a later run finds nothing left to do."""
    _say(f"producer: {job.teacher} reads {text.name}")
    chat = ["--chat"] if text.stem == "chat" else []
    hidden = ["--hidden-states", "attention", "--layers", "all"] if text.stem != "heldout" else []
    report = command(
        "producer", "generate", "--teacher", job.teacher, "--data", str(text),
        "--out", str(job.out / "shards" / text.stem),
        "--top-k", "64", "--max-length", str(job.sizes.max_length), *chat, *hidden,
    )  # fmt: skip
    kept = job.out / f"capture-{text.stem}.json"
    if report["shards_present_before"] < report["shards"] or not kept.exists():
        kept.write_text(json.dumps(report, indent=2) + "\n")
    first: dict[str, Any] = json.loads(kept.read_text())
    return first


def _require_better_than_bigram(job: Job, text: Path) -> float:
    """The held-out perplexity of a bigram model of the training text. Raises ArwkvError if the teacher's is no lower.

    A student becomes no better than its teacher: a broken one is named before hours are spent on it.
    """
    from transformers import AutoTokenizer

    heldout = open_dataset(str(job.out / "shards" / "heldout"), columns=[])
    tokenizer = AutoTokenizer.from_pretrained(job.teacher)
    documents = tokenizer([json.loads(line)["text"] for line in text.read_text().splitlines()])["input_ids"]
    windows = [sample.tokens.tolist() for sample in heldout]
    bigram = bigram_perplexity(list(itertools.chain(*documents)), windows, heldout.info.tokenizer.vocab_size)
    perplexity = heldout.stats().teacher_perplexity
    if perplexity is None or perplexity >= bigram:
        raise ArwkvError(
            f"teacher {job.teacher}: held-out perplexity {perplexity}, no lower than the {bigram:.1f} of token pairs "
            f"counted in {text}; train it for longer (examples/teacher.py --steps), or name another with TEACHER="
        )
    return bigram


def train_student(job: Job, datasets: list[str], *words: str) -> None:
    """Stages align and distill from these datasets, with further flags of `student train`."""
    _say(f"student: preset {job.sizes.preset}")
    sizes = job.sizes
    command(
        "student", "train", *itertools.chain(*(["--shards", dataset] for dataset in datasets)),
        "--base", job.teacher, "--preset", sizes.preset, "--stage", "auto", "--out", str(job.run),
        "--init", "calibrated", "--batch-size", str(sizes.batch_size), "--align-tokens", str(sizes.align_tokens),
        "--align-lr", str(sizes.align_lr), "--distill-lr", str(sizes.distill_lr),
        "--rest-lr", str(sizes.rest_lr), *words,
    )  # fmt: skip


def _evaluate(job: Job, heldout: str) -> list[dict[str, Any]]:
    """Figures of the student untrained, after align and after distill."""
    _say("student: compared with its teacher on held-out text")
    untrained = ["--base", job.teacher, "--preset", job.sizes.preset]
    trained = [["--model", str(folder)] for folder in (job.run / "align", job.run)]
    words = ["student", "eval", "--shards", heldout, "--batch-size", str(job.sizes.batch_size)]
    with ThreadPoolExecutor(2) as two_at_once:  # half of the time is loading, on one core
        return list(two_at_once.map(lambda student: command(*words, *student), [untrained, *trained]))


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


def command(*words: str) -> dict[str, Any]:
    """Run one console script with `--json`; its bars and messages pass through, its document is returned."""
    done = subprocess.run([str(BIN / words[0]), *words[1:], "--json"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ArwkvError(f"`{' '.join(words)}` failed with exit code {done.returncode}; its message is above")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def _summarize(
    capture: dict[str, Any],
    stats: dict[str, Any],
    metrics: list[dict[str, Any]],
    untrained: dict[str, Any],
    aligned: dict[str, Any],
    distilled: dict[str, Any],
) -> dict[str, Any]:
    untrained_loss = next(line["untrained_loss"] for line in metrics if "untrained_loss" in line)
    align_loss = [line["loss"] for line in metrics if line.get("stage") == "align" and "loss" in line][-1]
    by_column, tokens = stats["bytes_by_column"], stats["tokens"]
    hidden = sum(size for column, size in by_column.items() if is_hidden_column(column))
    return {
        "teacher_perplexity": distilled["teacher_perplexity"],
        "student_perplexity": distilled["student_perplexity"],
        "perplexity_ratio": distilled["perplexity_ratio"],
        "kl_untrained": untrained["kl"],
        "kl_align": aligned["kl"],
        "kl_distill": distilled["kl"],
        "align_loss_first": untrained_loss,
        "align_loss_last": align_loss,
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


def _report(job: Job, summary: dict[str, Any], metrics: list[dict[str, Any]], stats: dict[str, Any]) -> None:
    first, last = summary["align_loss_first"], summary["align_loss_last"]
    table = [
        ("held-out perplexity, bigram", f"{summary['teacher_bigram_perplexity']:.2f}"),
        ("held-out perplexity, teacher", f"{summary['teacher_perplexity']:.2f}"),
        ("held-out perplexity, student", f"{summary['student_perplexity']:.2f}"),
        ("student / teacher", f"{summary['perplexity_ratio']:.4f}"),
        ("KL to teacher, untrained", f"{summary['kl_untrained']:.3f} nats"),
        ("KL to teacher, after align", f"{summary['kl_align']:.4f} nats"),
        ("KL to teacher, after distill", f"{summary['kl_distill']:.4f} nats"),
        ("same top token as the teacher", f"{summary['top1_agreement']:.1%}"),
        ("align loss, untrained to last", f"{first:.3f} to {last:.3f} (-{1 - last / first:.0%})"),
        ("training tokens stored", f"{summary['tokens']:,}"),
        ("bytes per token, logits", f"{summary['bytes_per_token_logits']:.1f}"),
        ("bytes per token, attention outputs", f"{summary['bytes_per_token_hidden']:.1f}"),
        ("producer", f"{summary['producer_tokens_per_s']:,} tokens/s"),
        ("student", f"{summary['student_tokens_per_s']:,} tokens/s"),
        ("machine", f"{summary['machine']['cores']} cores, {summary['machine']['isa']}, {summary['machine']['dtype']}"),
        ("this run", f"{summary['seconds']:.0f} s"),
    ]  # fmt: skip
    write_report(
        job.out / "report.html",
        title=f"{job.sizes.preset} student of {Path(job.teacher).name}",
        lead="An attention model turned into an RNN, from its stored outputs alone.",
        table=table,
        metrics=metrics,
        summary=summary,
        stats=stats,
        continuations=continuations(job.teacher, job.run, chat=not job.is_small),
    )
    width = max(len(name) for name, _ in table)
    print("\n".join(f"  {name:<{width}}  {value}" for name, value in table), file=sys.stderr)
    print(f"\n  {job.out / 'summary.json'}\n  {job.out / 'report.html'}", file=sys.stderr)


def _say(text: str) -> None:
    print(f"\n== {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main("demo.py", "The main job, end to end.", run_demo)
