"""What students still recall of texts longer than those that they were trained on, before and after tuning.

    python benchmarks/long_context.py --out runs/long-context

A small teacher learns texts of `--teacher-context` tokens in which numbers are stated, and stated again, amid sentences
that have nothing to do with them. Students learn from its shards of shorter texts, `--context` tokens, and then answer
`student eval --suite long`, task `single`, at multiples of that length. Each student is then tuned (`--stage sft`) on
texts that state nothing, with all parameters and with `--trained spare-recall`, and asked again. Every step is a
command that continues after a stop.
"""

import dataclasses
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from arwkv_store.commands.command_line import main
from arwkv_student.long.tasks import FILLER, WORDS
from figures import print_table, write_json
from teacher import TeacherConfig, train_teacher

TOKENS_OF_A_PIECE = 8
"""About: of a sentence of the filler, or of a stated number, in the tokenizer that this makes."""
FILLER_SHARES = (0.3, 0.6, 0.9)


@dataclasses.dataclass(frozen=True)
class LongContextConfig:
    """Recall beyond the trained length, of students with and without layers that attend."""

    out: Path = Path("runs/long-context")
    """Folder of everything that is made."""
    teacher_context: int = 1024
    """Tokens of the teacher's texts."""
    teacher_steps: int = 800
    """Optimizer steps of the teacher, 4,096 tokens each."""
    context: int = 256
    """Tokens of the students' texts."""
    tokens: int = 400_000
    """Tokens of each stage."""
    tuning_steps: int = 60
    """Steps of tuning, 8 short texts each."""
    lengths: tuple[int, ...] = (256, 512, 1024)
    """Tokens of the texts that are asked about."""
    questions: int = 50
    """Of each length."""
    seed: int = 0
    """Seed of text and students."""
    json: bool = False
    """Print the figures as one JSON document."""
    json_out: Path | None = None
    """Write the figures to this file."""


def measure(config: LongContextConfig) -> dict[str, Any]:
    """Train the teacher and the students, and ask each; one row a model."""
    commands = Commands(config, _teacher(config))
    chance = random.Random(f"students {config.seed}")
    texts = _texts(config.tokens, config.context, FILLER_SHARES, chance)
    _write(config.out / "text.jsonl", ({"text": text} for text in texts))
    short = _texts(config.tuning_steps * 8 * 64, 32, (1.0,), chance)
    tuning = zip(short, short, strict=False)
    _write(config.out / "tuning.jsonl", ({"prompt": text, "completion": more} for text, more in tuning))
    commands.capture()
    rows = [{"model": "teacher", **commands.recall(commands.teacher)}]
    for name, flags in commands.students().items():
        student = commands.train(name, flags)
        rows.append({"model": name, **commands.recall(student)})
        for way in ("all", "spare-recall"):
            tuned = commands.tune(student, way)
            rows.append({"model": f"{name}, tuned: {way}", **commands.recall(tuned)})
    if not config.json:
        print_table("recall of one number, share of answers that are right", rows)
    results = {"settings": dataclasses.asdict(config) | {"out": str(config.out), "json_out": None}, "rows": rows}
    write_json(config.json_out, results)
    return results


@dataclasses.dataclass(frozen=True)
class Commands:
    """The commands as a user types them."""

    config: LongContextConfig
    teacher: Path

    @property
    def out(self) -> Path:
        return self.config.out

    def capture(self) -> None:
        """The teacher's shards of the students' text."""
        flags = (
            "--capture-backend",
            "transformers",
            "--max-length",
            self.config.context,
            "--hidden-states",
            "attention",
        )
        files = ("--data", self.out / "text.jsonl", "--out", self.out / "shards")
        _run("producer", "generate", "--teacher", self.teacher, "--top-k", 32, *files, *flags)

    def students(self) -> dict[str, Sequence[Any]]:
        """Flags of each, by name; one keeps the layer that `student select` chooses."""
        file, base = self.out / "layers.json", ("--base", self.teacher, "--shards", self.out / "shards")
        if not file.exists():
            _run("student", "select", *base, "--preset", "rad-rwkv7", "--keep", 1, "--score", "kl", "--out", file)
        kept = ("--preset", "rad-rwkv7", "--layers", file)
        return {
            "rad-rwkv7": ("--preset", "rad-rwkv7"),
            "arwkv": ("--preset", "arwkv"),
            "rad-rwkv7, one layer kept": kept,
            "rad-rwkv7, one layer kept, without rope": (*kept, "--kept-rope", False),
        }

    def train(self, name: str, flags: Sequence[Any]) -> Path:
        """Both stages on the shards."""
        data = ("--base", self.teacher, "--shards", self.out / "shards", "--tokens", self.config.tokens)
        rates = ("--align-lr", 3e-3, "--distill-lr", 1e-3, "--batch-size", 4, "--seed", self.config.seed)
        out = self.out / "".join(letter if letter.isalnum() else "-" for letter in name)
        _run("student", "train", *data, *rates, "--init", "calibrated", "--workers", 0, "--out", out, *flags)
        return out

    def tune(self, student: Path, trained: str) -> Path:
        """On texts that ask for nothing."""
        out = student.with_name(f"{student.name}-{trained}")
        data = ("--stage", "sft", "--data", self.out / "tuning.jsonl", "--steps", self.config.tuning_steps)
        rates = ("--sft-lr", 1e-3, "--batch-size", 8, "--workers", 0, "--seed", self.config.seed)
        _run("student", "train", *data, *rates, "--start-from", student, "--trained", trained, "--out", out)
        return out

    def recall(self, model: Path) -> dict[str, float]:
        """The share of right answers by length."""
        lengths = ("--lengths", *self.config.lengths, "--long-tasks", "single", "--samples", self.config.questions)
        answer = _run("student", "eval", "--model", model, "--suite", "long", *lengths, "--json")
        found = json.loads(answer)["long"]["single"]
        return {f"{length} tokens": found[str(length)]["exact"] for length in self.config.lengths}


def _teacher(config: LongContextConfig) -> Path:
    """Trained on texts of its own."""
    folder = config.out / "teacher-text"
    folder.mkdir(parents=True, exist_ok=True)
    tokens = min(config.teacher_steps, 500) * 4096
    texts = _texts(tokens, config.teacher_context, FILLER_SHARES, random.Random("teacher"))
    for number, text in enumerate(texts):
        (folder / f"{number:05}.txt").write_text(text)
    shape = {"vocab_size": 400, "hidden_size": 128, "layers": 4, "heads": 4, "context": config.teacher_context}
    teacher = str(config.out / "teacher")
    train_teacher(TeacherConfig(out=teacher, text=str(folder / "*.txt"), steps=config.teacher_steps, **shape))
    return Path(teacher)


def _texts(tokens: int, length: int, filler_shares: Sequence[float], chance: random.Random) -> Iterator[str]:
    """Texts of about so many tokens together, `length` each: numbers are stated, and stated again, amid filler."""
    for _ in range(tokens // length):
        filler_share, numbers = chance.choice(filler_shares), dict[str, int]()
        pieces = []
        for _ in range(length // TOKENS_OF_A_PIECE):
            if chance.random() < filler_share:
                pieces.append(chance.choice(FILLER))
                continue
            again = numbers and chance.random() < 0.6
            name = chance.choice(list(numbers)) if again else chance.choice(WORDS)
            number = numbers.setdefault(name, chance.randrange(10_000, 100_000))
            pieces.append(f" The magic number of {name} is {number}.")
        yield "".join(pieces)


def _write(file: Path, records: Iterator[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def _run(program: str, *words: Any) -> str:
    """What one of the commands prints; its own lines go to stderr."""
    line = [str(Path(sys.executable).parent / program), *map(str, words)]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


if __name__ == "__main__":
    main("long_context.py", "Recall beyond the trained length.", measure)
