"""Three rounds on the student's own text, on arithmetic whose answers are checked.

    python examples/rounds.py --out runs/rounds

A small teacher learns lines such as `3+5+8+1=3,8,6,7.` (running sums, of which the last digit is written) among lines
of letters that have nothing to do with them. Its shards of that text make a student. From there, with equal tokens:

- `offline`: the student reads more of the same text;
- `answers`: the student reads the teacher's own answers to prompts (`producer write`);
- `rounds`: the student answers the prompts (`student rollout`), the teacher scores them (`producer generate`), the
  student learns from that, round after round.

Each is asked the same questions at the end, greedily, and its answers are checked. Every step is a command that
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

QUESTION_SHARE = 0.25
"""Of the lines of the offline text that are sums."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclasses.dataclass(frozen=True)
class RoundsConfig:
    """Compare rounds on the student's own text with offline text and with the teacher's answers."""

    out: Path = Path("runs/rounds")
    """Folder of everything that is made."""
    rounds: int = 3
    """How often the student writes and learns."""
    prompts: int = 1500
    """Prompts of each round."""
    terms: int = 8
    """Numbers of a sum."""
    teacher_steps: int = 2000
    """Optimizer steps of the teacher, 4,096 tokens each."""
    first_tokens: int = 150_000
    """Tokens of the student's first text, for each of stages align and distill."""
    questions: int = 300
    """Checked at the end."""
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
    prompts = [_prompts(out / f"prompts-{n}.jsonl", config.prompts, config, chance) for n in range(config.rounds)]
    _prompts(out / "questions.jsonl", config.questions, config, chance)
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
        """Of a right answer: a digit and a mark for each number."""
        return 2 * self.config.terms

    def capture(self, text: Path, *more: Any) -> int:
        """The teacher's shards of a text, under its name; returns their tokens."""
        teacher, shards = ("--teacher", self.teacher, "--capture-backend", "transformers"), self.out / text.stem
        _run("producer", "generate", *teacher, "--top-k", 16, "--data", text, "--out", shards, *more)
        return open_dataset(str(shards), columns=[]).tokens

    def train(self, student: str, shards: str, *more: Any) -> None:
        """A student of the teacher as its base."""
        rates = ("--distill-lr", self.config.distill_lr, "--batch-size", 32, "--seed", self.config.seed)
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
    shape = {"vocab_size": 300, "hidden_size": 128, "layers": 3, "context": 128, "steps": config.teacher_steps}
    train_teacher(TeacherConfig(out=str(config.out / "teacher"), text=str(folder / "*.txt"), **shape))
    return config.out / "teacher"


def _text(tokens: int, config: RoundsConfig, chance: random.Random) -> Iterator[str]:
    """Lines of about so many characters, each near a token."""
    while tokens > 0:
        is_sum = chance.random() < QUESTION_SHARE
        line = "".join(sum_of(config.terms, chance)) if is_sum else _letters(chance)
        tokens -= len(line) + 1
        yield line + "\n"


def sum_of(terms: int, chance: random.Random) -> tuple[str, str]:
    """A prompt and its answer."""
    numbers = [chance.randrange(10) for _ in range(terms)]
    prompt = "+".join(map(str, numbers)) + "="
    return prompt, right_answer(prompt)


def right_answer(prompt: str) -> str:
    """The running sums of `3+5+8=`, their last digits: `3,8,6.`"""
    total, sums = 0, []
    for number in prompt.removesuffix("=").split("+"):
        total = (total + int(number)) % 10
        sums.append(str(total))
    return ",".join(sums) + "."


def _letters(chance: random.Random) -> str:
    """Words of three letters, each beginning with the letter after the last one of the word before."""
    words, first = [], chance.randrange(26)
    for _ in range(8):
        word = [first, chance.randrange(26), chance.randrange(26)]
        words.append("".join(LETTERS[letter] for letter in word))
        first = (word[-1] + 1) % 26
    return " ".join(words)


def _prompts(file: Path, count: int, config: RoundsConfig, chance: random.Random) -> Path:
    asked = (sum_of(config.terms, chance) for _ in range(count))
    file.write_text("".join(json.dumps({"prompt": prompt, "right": right}) + "\n" for prompt, right in asked))
    return file


def _write(file: Path, lines: Iterator[str]) -> None:
    """Documents of some twenty lines."""
    documents: list[str] = [""]
    for line in lines:
        if len(documents[-1]) > 500:
            documents.append("")
        documents[-1] += line
    file.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))


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
