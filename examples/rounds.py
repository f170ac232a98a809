"""Three rounds on the student's own text, on arithmetic whose answers are checked.

    python examples/rounds.py --out runs/rounds

A small teacher learns lines such as `3+4=7,7+4=1,1+4=5.` (each sum begins with the result of the one before it, of
which the last digit is written) among lines of letters that have nothing to do with them. Its shards of that text make
a student. From there, with equal tokens:

- `offline`: the student reads more of the same text;
- `answers`: the student reads the teacher's own answers to prompts (`producer write`);
- `rounds`: the student answers the prompts (`student rollout`), the teacher scores them (`producer generate`), the
  student learns from that, round after round.

At the end each answers all 100 prompts, greedily, and its answers are checked. Every step is a command that
continues after a stop. The figures are written to OUT/rounds.json.
"""

import dataclasses
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from arwkv_store import open_dataset
from arwkv_store.commands.command_line import main
from teacher import TeacherConfig, train_teacher

QUESTION_SHARE = 0.5
"""Of the lines of the offline text that are sums."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclasses.dataclass(frozen=True)
class RoundsConfig:
    """Compare rounds on the student's own text with offline text and with the teacher's answers."""

    out: Path = Path("runs/rounds")
    """Folder of everything that is made."""
    rounds: int = 3
    """How often the student writes and learns."""
    prompts: int = 600
    """Prompts of each round."""
    sums: int = 5
    """Of a line."""
    teacher_steps: int = 800
    """Optimizer steps of the teacher, 1,024 tokens each."""
    first_tokens: int = 40_000
    """Tokens of the student's first text, for each of stages align and distill."""
    divergence: str = "forward"
    """Loss of the rounds."""
    temperature: float = 1.0
    """Of the student's answers."""
    distill_lr: float = 1e-3
    """Peak learning rate of every distillation."""
    seed: int = 0
    """Seed of text, prompts and student."""
    json: bool = False
    """Print the figures as one JSON document."""


def compare(config: RoundsConfig) -> dict[str, Any]:
    """Train the teacher, the first student and the three branches; returns the accuracy of each."""
    out, chance = config.out, random.Random(config.seed)
    out.mkdir(parents=True, exist_ok=True)
    commands = Commands(config, _teacher(config))
    _write(out / "first.jsonl", _text(config.first_tokens, config, chance))
    prompts = [
        _write_prompts(out / f"prompts-{n}.jsonl", [prompt_of(chance) for _ in range(config.prompts)], config)
        for n in range(config.rounds)
    ]
    _write_prompts(out / "questions.jsonl", [f"{first}+{step}=" for first in range(10) for step in range(10)], config)
    commands.capture(out / "first.jsonl", "--hidden-states", "attention")
    commands.train("student", "first", "--init", "calibrated", "--align-lr", "3e-3")
    accuracy: dict[str, Any] = {name: commands.accuracy(name) for name in ("teacher", "student")}
    tokens, before = [], "student"
    for n, file in enumerate(prompts):
        commands.rollout(before, file, out / f"round-{n}.jsonl", config.temperature)
        tokens.append(commands.capture(out / f"round-{n}.jsonl"))
        commands.distill(f"student-{n}", f"round-{n}", before, tokens[-1], config.divergence)
        before = f"student-{n}"
    accuracy["rounds"] = [commands.accuracy(f"student-{n}") for n in range(config.rounds)]
    _write(out / "offline.jsonl", _text(sum(tokens), config, chance))
    commands.write(prompts, out / "answers.jsonl")
    for way in ("offline", "answers"):
        commands.capture(out / f"{way}.jsonl")
        commands.distill(f"student-{way}", way, "student", sum(tokens), "forward")
        accuracy[way] = commands.accuracy(f"student-{way}")
    figures = {"accuracy": accuracy, "tokens": tokens, "settings": dataclasses.asdict(config) | {"out": str(out)}}
    (out / "rounds.json").write_text(json.dumps(figures, indent=2) + "\n")
    if not config.json:
        for name, value in accuracy.items():
            print(f"{name:8} {value}")
    return figures


@dataclasses.dataclass(frozen=True)
class Commands:
    """The commands as a user types them; names are those of students and datasets in OUT."""

    config: RoundsConfig
    teacher: Path

    @property
    def out(self) -> Path:
        return self.config.out

    @property
    def answer_tokens(self) -> int:
        """Of a right answer, a token for each character."""
        return len(right_answer("0+0=", self.config.sums))

    def capture(self, text: Path, *more: Any) -> int:
        """The teacher's shards of a text, under its name; returns their tokens."""
        teacher, shards = ("--teacher", self.teacher, "--capture-backend", "transformers"), self.out / text.stem
        _run("producer", "generate", *teacher, "--top-k", 16, "--data", text, "--out", shards, *more)
        return open_dataset(str(shards), columns=[]).tokens

    def train(self, student: str, shards: str, *more: Any) -> None:
        """A student of the teacher as its base."""
        rates = ("--distill-lr", self.config.distill_lr, "--batch-size", 8, "--seed", self.config.seed)
        _run(
            *("student", "train", "--base", self.teacher, "--shards", self.out / shards, "--out", self.out / student),
            *(*rates, "--workers", 0, *more),
        )

    def distill(self, student: str, shards: str, before: str, tokens: int, divergence: str) -> None:
        """The student `before`, trained on so many tokens of the shards."""
        start = ("--start-from", self.out / before, "--stage", "distill")
        self.train(student, shards, *start, "--tokens", tokens, "--divergence", divergence)

    def rollout(self, student: str, prompts: Path, answers: Path, temperature: float) -> None:
        """The student's answers."""
        sampling = ("--temperature", temperature, "--seed", self.config.seed, "--max-new-tokens", self.answer_tokens)
        files = ("--data", prompts, "--out", answers)
        _run("student", "rollout", "--model", self.out / student, *files, *sampling, "--batch-size", 256)

    def write(self, prompts: Sequence[Path], answers: Path) -> None:
        """The teacher's answers."""
        files = ("--data", *prompts, "--out", answers)
        _run("producer", "write", "--teacher", self.teacher, *files, "--max-new-tokens", self.answer_tokens)

    def accuracy(self, model: str) -> float:
        """The share of the questions that a model answers rightly, greedily."""
        answers = self.out / f"checked-{model}.jsonl"
        self.rollout(model, self.out / "questions.jsonl", answers, 0.0)
        records = [json.loads(line) for line in answers.read_text().splitlines()]
        return sum(record["completion"].startswith(record["right"]) for record in records) / len(records)


def _teacher(config: RoundsConfig) -> Path:
    """Trained on files of the same kind of text; the same for every seed."""
    folder = config.out / "teacher-text"
    folder.mkdir(exist_ok=True)
    chance = random.Random("teacher")
    for number in range(40):
        (folder / f"{number:02}.txt").write_text("".join(_text(20_000, config, chance)))
    shape = {"vocab_size": 300, "hidden_size": 128, "layers": 2, "heads": 4, "context": 64, "step_tokens": 1024}
    train_teacher(
        TeacherConfig(out=str(config.out / "teacher"), text=str(folder / "*.txt"), steps=config.teacher_steps, **shape)
    )
    return config.out / "teacher"


def _text(tokens: int, config: RoundsConfig, chance: random.Random) -> Iterator[str]:
    """Lines of about so many characters, each near a token."""
    while tokens > 0:
        is_sum = chance.random() < QUESTION_SHARE
        line = _sums(prompt_of(chance), config) if is_sum else _letters(chance)
        tokens -= len(line) + 1
        yield line + "\n"


def prompt_of(chance: random.Random) -> str:
    """The beginning of a line of sums."""
    return f"{chance.randrange(10)}+{chance.randrange(10)}="


def right_answer(prompt: str, sums: int) -> str:
    """What follows `3+4=` in a line of so many sums: `7,7+4=1.` for two."""
    total, step = map(int, prompt.removesuffix("=").split("+"))
    results = [(total + step * number) % 10 for number in range(1, sums + 1)]
    return "".join(f"{result},{result}+{step}=" for result in results[:-1]) + f"{results[-1]}."


def _sums(prompt: str, config: RoundsConfig) -> str:
    return prompt + right_answer(prompt, config.sums)


def _letters(chance: random.Random) -> str:
    """Words of three letters, each beginning with the letter after the last one of the word before."""
    words, first = [], chance.randrange(26)
    for _ in range(8):
        word = [first, chance.randrange(26), chance.randrange(26)]
        words.append("".join(LETTERS[letter] for letter in word))
        first = (word[-1] + 1) % 26
    return " ".join(words)


def _write_prompts(file: Path, prompts: Sequence[str], config: RoundsConfig) -> Path:
    lines = [{"prompt": prompt, "right": right_answer(prompt, config.sums)} for prompt in prompts]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def _write(file: Path, lines: Iterator[str]) -> None:
    """A document each, about as long as an answer, so that equal tokens are equally many steps."""
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))


def _run(program: str, *words: Any) -> None:
    """One of the commands, as a user types it; its own lines go to stderr."""
    line = [str(Path(sys.executable).parent / program), *map(str, words)]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    print(
        f"{program} {words[0]}: {done.stdout.strip().splitlines()[-1] if done.stdout.strip() else 'done'}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main("rounds.py", "Rounds on the student's own text.", compare)
