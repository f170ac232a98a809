"""`student eval --suite long`: facts recalled from long texts, and perplexity by position."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from arwkv_store.commands.progress import Progress
from arwkv_store.errors import UsageError
from arwkv_student.bases.tokenizer import open_tokenizer
from arwkv_student.data.conversations import read_records
from arwkv_student.long.reading import likeliest, negative_log_likelihoods
from arwkv_student.long.settings import Task
from arwkv_student.long.tasks import Question, question
from arwkv_student.model.loading import accelerator, computes_in_bf16, load_any_student
from arwkv_student.settings import EvalSettings

QUESTIONS = 20
"""Of each task and length, if `--samples` does not say."""
FIRST_BIN = 256


def evaluate_long(settings: EvalSettings) -> dict[str, Any]:
    """Accuracy by task and length, and with `--long-text` perplexity by position.

    `exact`: the share of questions whose answer is what the model says by itself, greedily, token by token. `items`:
    the share of the answer's items, each given the true ones before it. Both are the same for answers of one item.
    Raises UsageError for lengths that a task or the text does not fill.
    """
    if settings.model is None:
        raise UsageError("--model is missing; name the folder of a student, or of its teacher to compare")
    if not settings.lengths or min(settings.lengths) < 2 or min(settings.chunk_tokens, settings.batch_size) < 1:
        raise UsageError(
            f"--lengths {' '.join(map(str, settings.lengths))} --chunk-tokens {settings.chunk_tokens} --batch-size "
            f"{settings.batch_size}: give lengths of at least 2 tokens, and at least 1 of the others"
        )
    folder = Path(settings.model)
    tokenizer = open_tokenizer(f"model {folder}", folder)
    model = load_any_student(folder).eval().to(accelerator())
    vocab_size = min(max(tokenizer.get_vocab().values()) + 1, model.config.vocab_size)
    with (
        Progress("long", None) as progress,
        torch.autocast(model.device.type, torch.bfloat16, enabled=computes_in_bf16(settings.dtype)),
    ):
        tasks = {
            task: {
                str(n): _accuracy(model, task, n, settings, tokenizer, vocab_size, progress) for n in settings.lengths
            }
            for task in settings.long_tasks
        }
        figures: dict[str, Any] = {"long": tasks}
        if settings.long_text is not None:
            figures["perplexity_by_position"] = _perplexity(model, settings, tokenizer, vocab_size, progress)
    return figures


def _accuracy(
    model: PreTrainedModel,
    task: Task,
    tokens: int,
    settings: EvalSettings,
    tokenizer: Any,
    vocab_size: int,
    progress: Progress,
) -> dict[str, float]:
    count = settings.samples or QUESTIONS
    exact, items, asked = 0, 0, 0
    for first in range(0, count, settings.batch_size):
        batch = range(first, min(first + settings.batch_size, count))
        questions = [question(task, tokens, number, settings.seed, tokenizer) for number in batch]
        for found in _right(model, questions, vocab_size, settings.chunk_tokens):
            exact, items, asked = exact + all(found), items + sum(found), asked + len(found)
        progress.advance(tokens * len(batch), note=f"{task} {tokens:,}")
    return {"exact": exact / count, "items": items / asked}


def _right(model: PreTrainedModel, questions: list[Question], vocab_size: int, chunk: int) -> Iterator[list[bool]]:
    """For each question, which items of its answer the model says."""
    for _, group in itertools.groupby(questions, key=lambda asked: len(asked.ids)):
        same = list(group)
        answers = [[token for item in asked.answer for token in item] for asked in same]
        ids_BT = torch.tensor([asked.ids + answer for asked, answer in zip(same, answers, strict=True)])
        said_BT = likeliest(model, ids_BT.to(model.device), len(answers[0]), vocab_size, chunk).tolist()
        for asked, said in zip(same, said_BT, strict=True):
            ends = [*itertools.accumulate(map(len, asked.answer))]
            yield [said[end - len(item) : end] == item for item, end in zip(asked.answer, ends, strict=True)]


def _perplexity(
    model: PreTrainedModel, settings: EvalSettings, tokenizer: Any, vocab_size: int, progress: Progress
) -> dict[str, float]:
    """By the range of positions that it is a mean of: 0-255, 256-511, 512-1023, and so on to the longest length."""
    length = max(settings.lengths)
    bounds = [0, *itertools.takewhile(lambda end: end < length, (FIRST_BIN << n for n in itertools.count())), length]
    sums, counts = [0.0] * (len(bounds) - 1), [0] * (len(bounds) - 1)
    texts = list(itertools.islice(_texts(settings, tokenizer, length), settings.samples))
    if not texts:
        raise UsageError(
            f"--long-text {settings.long_text}: it holds fewer than {length:,} tokens; give shorter --lengths"
        )
    for ids in texts:
        ids_1T = torch.tensor([ids], device=model.device)
        nll_T = torch.cat([*negative_log_likelihoods(model, ids_1T, vocab_size, settings.chunk_tokens)], dim=1)[0]
        for place, (first, end) in enumerate(itertools.pairwise(bounds)):
            part: Tensor = nll_T[max(first - 1, 0) : end - 1].double()
            sums[place], counts[place] = sums[place] + float(part.sum()), counts[place] + len(part)
        progress.advance(length, note="perplexity")
    return {
        f"{first}-{end - 1}": math.exp(total / count)
        for (first, end), total, count in zip(itertools.pairwise(bounds), sums, counts, strict=True)
        if count
    }


def _texts(settings: EvalSettings, tokenizer: Any, length: int) -> Iterator[list[int]]:
    """Stretches of `length` tokens: a long document's beginning, or several with an end token between them."""
    assert settings.long_text is not None, "asked for texts without a file"
    ids: list[int] = []
    for record in read_records(settings.long_text, "--long-text"):
        if "text" not in record.fields:
            raise UsageError(f"{record.where}: no field `text` (it has: {', '.join(record.fields)}); rename the field")
        own = tokenizer(record.text("text"), verbose=False)["input_ids"]
        ids += [tokenizer.eos_token_id] * (bool(ids) and tokenizer.eos_token_id is not None) + own
        if len(ids) >= length:
            yield ids[:length]
            ids = []
