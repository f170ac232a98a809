"""Questions about long texts, made of words that every tokenizer knows, to an exact number of tokens.

They follow the needles of RULER (arXiv 2404.06654): facts lie in a text that has nothing to do with them, and a
question at its end asks for one of them. A task's name is one of `arwkv_student.long.settings.TASKS`.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from arwkv_store.errors import UsageError
from arwkv_student.long.settings import Task

FILLER = (
    " The grass is green.", " The sky is blue.", " The sun is yellow.", " Here we go.", " There and back again.",
    " The river runs to the sea.", " A bird sat on the wall.", " We walked along the road.", " It rained in the night.",
)  # fmt: skip
WORDS = (
    "apple", "bread", "chair", "cloud", "dance", "eagle", "flame", "glass", "honey",
    "island", "jacket", "kettle", "lemon", "marble", "needle", "orange", "pencil", "quartz",
    "rabbit", "silver", "table", "umbrella", "violin", "window", "yellow", "zebra", "anchor",
    "bottle", "candle", "dragon", "engine", "forest", "garden", "hammer",
)  # fmt: skip
KEYS, HOPS, FREQUENT = 8, 4, 3


@dataclass(frozen=True)
class Question:
    """A text that ends with a question, and its answer."""

    ids: list[int]
    """The whole text, to the answer's first token."""
    answer: list[list[int]]
    """Token ids of each item of the answer, one after another."""


def question(task: Task, tokens: int, number: int, seed: int, tokenizer: Any) -> Question:
    """Question `number` of a task, `tokens` long together with its answer.

    Raises UsageError where the length does not hold the facts and the question.
    """
    chance = random.Random(f"{task} {tokens} {number} {seed}")
    facts, asked, items = _MAKERS[task](chance)
    encode = _Encoder(tokenizer)
    ending, answer = encode(asked), [encode(item) for item in items]
    room = tokens - len(ending) - sum(map(len, answer))
    if task == "aggregation":
        return Question(_list_of_words(facts, room, chance, encode) + ending, answer)
    return Question(_hidden_in_filler(facts, room, chance, encode, task) + ending, answer)


class _Encoder:
    """Token ids of pieces of a text, without special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def __call__(self, piece: str) -> list[int]:
        if piece not in self._known:
            self._known[piece] = self._tokenizer(piece, add_special_tokens=False)["input_ids"]
        return self._known[piece]


Made = tuple[list[str], str, list[str]]
"""Facts in their order, the question, and the items of the answer."""


def _single(chance: random.Random, keys: int = 1) -> Made:
    names = chance.sample(WORDS, keys)
    numbers = [str(chance.randrange(10_000, 100_000)) for _ in names]
    facts = [f" The magic number of {name} is {number}." for name, number in zip(names, numbers, strict=True)]
    asked = chance.randrange(keys)
    return facts, f" The magic number of {names[asked]} is", [f" {numbers[asked]}"]


def _multi_key(chance: random.Random) -> Made:
    return _single(chance, KEYS)


def _variables(chance: random.Random) -> Made:
    """A value is handed from name to name; another chain of names has another value."""
    names = chance.sample(WORDS, 2 * HOPS)
    values = [str(chance.randrange(10_000, 100_000)) for _ in range(2)]
    chains = [names[:HOPS], names[HOPS:]]
    steps = [
        [f" Set {chain[0]} to {value}.", *(f" Set {later} to {name}." for name, later in itertools.pairwise(chain))]
        for chain, value in zip(chains, values, strict=True)
    ]
    facts = []
    while any(steps):  # each chain in its own order
        facts.append(chance.choice([step for step in steps if step]).pop(0))
    return facts, f" The names whose value is {values[0]} are, in order,", [f" {name}" for name in chains[0]]


def _aggregation(chance: random.Random) -> Made:
    words = chance.sample(WORDS, len(WORDS))
    return words, " The most frequent words are, in order,", [f" {word}" for word in words[:FREQUENT]]


_MAKERS: dict[Task, Callable[[random.Random], Made]] = {
    "single": _single,
    "multi-key": _multi_key,
    "variables": _variables,
    "aggregation": _aggregation,
}


def _hidden_in_filler(
    facts: Sequence[str], room: int, chance: random.Random, encode: _Encoder, task: Task
) -> list[int]:
    """`room` tokens: the facts at random places of the filler, in their order."""
    pieces = [encode(fact) for fact in facts]
    left = room - sum(map(len, pieces))
    if left < 0:
        raise UsageError(f"--lengths: {room} tokens do not hold the facts of task {task}; give longer ones")
    filler: list[list[int]] = []
    while left > 0:
        filler.append(encode(chance.choice(FILLER))[:left])
        left -= len(filler[-1])
    places = sorted(chance.randrange(len(filler) + 1) for _ in pieces)
    for place, piece in reversed(list(zip(places, pieces, strict=True))):
        filler.insert(place, piece)
    return [token for piece in filler for token in piece]


def _list_of_words(words: Sequence[str], room: int, chance: random.Random, encode: _Encoder) -> list[int]:
    """`room` tokens: a list in which each of the first words is rarer than the one before it, and the rest are rare."""
    weights = [8 - 2 * place if place < FREQUENT else 1 for place in range(len(words))]
    per_round = sum(weight * len(encode(f" {word}")) for weight, word in zip(weights, words, strict=True))
    rounds = room // per_round
    if rounds < 1:
        raise UsageError(f"--lengths: {room} tokens do not hold a list of task aggregation; give longer ones")
    listed = [word for weight, word in zip(weights, words, strict=True) for _ in range(weight * rounds)]
    chance.shuffle(listed)
    ids = [token for word in listed for token in encode(f" {word}")]
    rest = room - len(ids)
    filler = [token for piece in FILLER for token in encode(piece)]
    return [*(filler * (rest // len(filler) + 1))[:rest], *ids]
