"""`student rollout`: a student's answers to the prompts of a file, as text that a teacher can score."""

import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from arwkv_store.commands.progress import Progress
from arwkv_store.errors import UsageError
from arwkv_store.places.answer_file import AnswerFile, answer_file
from arwkv_store.text.prompts import Prompt, fingerprint, prompts
from arwkv_student.bases.tokenizer import open_tokenizer
from arwkv_student.data.conversations import read_records
from arwkv_student.model.loading import (
    accelerator,
    checkpoint_hash,
    computes_in_bf16,
    hold_products_in_bf16,
    load_any_student,
)
from arwkv_student.rollout.sampling import Sampler, answers
from arwkv_student.rollout.settings import RolloutSettings


class Asked(NamedTuple):
    """One answer to be written."""

    prompt: Prompt
    sample: int
    """Its number among the prompt's answers."""


def rollout(settings: RolloutSettings) -> dict[str, Any]:
    """Write `settings.out`, or continue it; returns how many answers it holds, and how many ended by themselves.

    Each line is an answer's record (see `Prompt.answered`) with `sample`, its number among its prompt's answers, and
    `ended`. FILE.origin names the student by its checkpoint's hash.
    """
    folder = Path(settings.model)
    checkpoint = checkpoint_hash(folder)
    tokenizer = open_tokenizer(f"model {folder}", folder)
    records = ((record.where, record.fields) for record in read_records(settings.data))
    found = list(itertools.islice(prompts(records, tokenizer), settings.prompts))
    if not found:
        raise UsageError(f"--data {settings.data}: it holds no prompt; give one JSON object per line")
    asked = [Asked(prompt, sample) for prompt in found for sample in range(settings.samples)]
    names = ("samples", "max_new_tokens", "temperature", "top_p", "seed")
    origin = {
        "command": "student rollout",
        "written_by": checkpoint,
        "prompts": fingerprint(found),
        **{name: getattr(settings, name) for name in names},
    }
    with answer_file(settings.out, origin) as file:
        if not file.complete:
            _write(file, asked, folder, tokenizer, settings)
    return {"out": str(settings.out), "answers": len(asked), "ended": _ended(settings.out), "written_by": checkpoint}


def _write(file: AnswerFile, asked: list[Asked], folder: Path, tokenizer: Any, settings: RolloutSettings) -> None:
    model = load_any_student(folder).eval().to(accelerator())
    bf16 = computes_in_bf16(settings.dtype)
    if bf16:
        hold_products_in_bf16(model)
    sampler = _sampler(settings, tokenizer, model)
    with (
        Progress("rollout", None) as progress,
        torch.autocast(model.device.type, torch.bfloat16, enabled=bf16),
    ):
        while file.lines < len(asked):
            batch = asked[file.lines : file.lines + settings.batch_size]
            records, tokens = _answered(batch, file.lines, tokenizer, model, sampler)
            file.add(records)
            progress.advance(tokens, note=f"{file.lines:,} of {len(asked):,} answers")
    file.finish()


def _sampler(settings: RolloutSettings, tokenizer: Any, model: PreTrainedModel) -> Sampler:
    own = getattr(model.generation_config, "eos_token_id", None)
    ends = own if isinstance(own, list) else [own, tokenizer.eos_token_id]
    return Sampler(
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
        max_new_tokens=settings.max_new_tokens,
        end_tokens=frozenset(end for end in ends if end is not None),
        vocab_size=min(max(tokenizer.get_vocab().values()) + 1, model.config.vocab_size),
    )


def _answered(
    batch: list[Asked], first: int, tokenizer: Any, model: PreTrainedModel, sampler: Sampler
) -> tuple[list[dict[str, Any]], int]:
    """The records of some answers, numbered from `first`, and how many tokens these have."""
    ids = [
        tokenizer(prompt.text, add_special_tokens=prompt.turns is None)["input_ids"] or [tokenizer.eos_token_id]
        for prompt, _ in batch
    ]
    said = answers(model, ids, range(first, first + len(batch)), sampler)
    records = []
    for (prompt, sample), new in zip(batch, said, strict=True):
        ended = new[-1] in sampler.end_tokens
        words = tokenizer.decode(new[:-1] if ended else new, skip_special_tokens=prompt.turns is not None)
        end = tokenizer.decode(new[-1:]) if ended else ""
        records.append(prompt.answered(words, end, sample=sample, ended=ended))
    return records, sum(map(len, said))


def _ended(out: Path) -> int:
    with out.open() as file:
        return sum(json.loads(line)["ended"] for line in file)
