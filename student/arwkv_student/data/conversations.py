"""What stages sft and dpo read: JSONL records, as token ids with the reply's tokens told from the rest.

A text is cut where a reply begins and ends, and each piece is tokenised by itself: the student then learns from exactly
the ids that it is given when it is asked to reply, whatever the tokenizer would merge across that border.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arwkv_store.errors import NotFound, UsageError

# What a loss leaves out, in torch's and transformers' terms.
IGNORED = -100

Turn = Mapping[str, Any]
"""`role` and `content`, and what else the chat template knows."""


@dataclass(frozen=True)
class Piece:
    """A part of a text, and whether the student is to predict it."""

    text: str
    counted: bool


@dataclass(frozen=True)
class Example:
    """One conversation: token ids [T], and the same as labels, IGNORED where a token is no reply's. Not shifted."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Pair:
    """One preference: the ids of a prompt and of the two replies to it."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


@dataclass(frozen=True)
class Record:
    """One line of a JSONL file, and where it stands."""

    fields: Mapping[str, Any]
    where: str


def read_records(file: Path, flag: str = "--data") -> Iterator[Record]:
    """Yield the objects of a JSONL file. Raises NotFound without the file, UsageError for a line that is no object."""
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _record(line, f"{file}:{number}")
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(f"{flag} {file}: {error}; name a JSONL file in UTF-8") from error


def _record(line: str, where: str) -> Record:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: no JSON ({error}); mend or remove the line") from error
    if not isinstance(fields, dict):
        raise UsageError(f"{where}: {type(fields).__name__}, not an object; mend or remove the line")
    return Record(fields, where)


def examples(records: Iterator[Record], tokenizer: Any, max_length: int) -> Iterator[Example]:
    """Conversations (`messages`) or `prompt` and `completion`, cut to their first `max_length` tokens.

    Assistant turns count, to their end; a plain completion is ended by the end-of-text token. Those are left out of
    which no counted token remains.
    """
    for record in records:
        ids: list[int] = []
        labels: list[int] = []
        for piece in _pieces(record, tokenizer):
            own = _ids(piece.text, tokenizer)
            ids += own
            labels += own if piece.counted else [IGNORED] * len(own)
        # The first token is predicted from nothing, so it never counts.
        labels = [IGNORED, *labels[1:max_length]]
        if any(label != IGNORED for label in labels):
            yield Example(ids[:max_length], labels)


def pairs(records: Iterator[Record], tokenizer: Any, max_length: int) -> Iterator[Pair]:
    """Preferences: `prompt`, `chosen` and `rejected`, as texts or as turns; without `prompt`, the shared first turns.

    Left out where the prompt alone fills `max_length`. The replies are cut where they are used: see
    `arwkv_student.training.dpo`.
    """
    for record in records:
        prompt, chosen, rejected = _prompt_and_replies(record, tokenizer)
        prompt_ids = _ids(prompt, tokenizer)
        if len(prompt_ids) < max_length:
            yield Pair(prompt_ids, _ids(chosen, tokenizer), _ids(rejected, tokenizer))


def _ids(text: str, tokenizer: Any) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []
    return ids


def _pieces(record: Record, tokenizer: Any) -> list[Piece]:
    if "messages" in record.fields:
        return _chat_pieces(record, _turns(record, "messages"), tokenizer)
    if {"prompt", "completion"} <= record.fields.keys():
        if isinstance(record.fields["prompt"], str):
            completion = _ended(_text(record, "completion"), tokenizer)
            return [Piece(_text(record, "prompt"), False), Piece(completion, True)]
        prompt, reply = _turns(record, "prompt"), _turns(record, "completion")
        return _reply_pieces(record, prompt, reply, tokenizer)
    raise UsageError(f"{record.where}: neither `messages` nor `prompt` and `completion`; it has {_names(record)}")


def _chat_pieces(record: Record, turns: Sequence[Turn], tokenizer: Any) -> list[Piece]:
    """A reply's text is what it adds to the conversation before it with the reply's header open.

    A first turn is no reply, whoever speaks: it has no text before it, nor has the system prompt that a template adds.
    """
    whole, at, pieces = _rendered(record, turns, tokenizer), 0, []
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant" or not number:
            continue
        opened = _rendered(record, turns[:number], tokenizer, header=True)
        closed = _rendered(record, turns[: number + 1], tokenizer)
        if not whole.startswith(opened) or not whole.startswith(closed) or not at <= len(opened) <= len(closed):
            raise UsageError(
                f"{record.where}: the chat template rewrites earlier turns, so turn {number + 1} cannot be told from "
                "the rest; cut the conversation there"
            )
        pieces += [Piece(whole[at : len(opened)], False), Piece(whole[len(opened) : len(closed)], True)]
        at = len(closed)
    return [*pieces, Piece(whole[at:], False)]


def _reply_pieces(record: Record, prompt: Sequence[Turn], reply: Sequence[Turn], tokenizer: Any) -> list[Piece]:
    """The prompt with the reply's header open, and what the reply adds to it."""
    opened = _rendered(record, prompt, tokenizer, header=True)
    whole = _rendered(record, [*prompt, *reply], tokenizer)
    if not whole.startswith(opened):
        raise UsageError(f"{record.where}: the chat template rewrites the prompt once it is answered; use another")
    return [Piece(opened, False), Piece(whole[len(opened) :], True)]


def _prompt_and_replies(record: Record, tokenizer: Any) -> tuple[str, str, str]:
    missing = {"chosen", "rejected"} - record.fields.keys()
    if missing:
        raise UsageError(f"{record.where}: no `{min(missing)}`; a preference has prompt, chosen and rejected")
    if isinstance(record.fields["chosen"], str):
        if "prompt" not in record.fields:
            raise UsageError(f"{record.where}: no `prompt`; without it chosen and rejected must be lists of turns")
        preferred, other = (_ended(_text(record, name), tokenizer) for name in ("chosen", "rejected"))
        return _text(record, "prompt"), preferred, other
    chosen, rejected = _turns(record, "chosen"), _turns(record, "rejected")
    if "prompt" in record.fields:
        prompt = _turns(record, "prompt")
    else:
        shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), 0)
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not prompt:
        raise UsageError(f"{record.where}: chosen and rejected share no first turn; add a `prompt`")
    texts = [_reply_pieces(record, prompt, reply, tokenizer) for reply in (chosen, rejected)]
    return texts[0][0].text, texts[0][1].text, texts[1][1].text


def _rendered(record: Record, turns: Sequence[Turn], tokenizer: Any, *, header: bool = False) -> str:
    if not tokenizer.chat_template:
        raise UsageError(f"{record.where}: turns, but the tokenizer has no chat template; give --chat-template FILE")
    tools = record.fields.get("tools")
    try:
        return str(tokenizer.apply_chat_template(turns, tools=tools, tokenize=False, add_generation_prompt=header))
    except Exception as error:  # a template is a program of its own and may raise anything
        raise UsageError(f"{record.where}: the chat template refuses it ({error}); mend the conversation") from error


def _turns(record: Record, name: str) -> list[Turn]:
    turns = record.fields[name]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) and "role" in turn for turn in turns):
        raise UsageError(f'{record.where}: `{name}` is no list of {{"role": …, "content": …}} turns')
    return turns


def _text(record: Record, name: str) -> str:
    text = record.fields[name]
    if not isinstance(text, str):
        raise UsageError(f"{record.where}: `{name}` is {type(text).__name__}, not text like the fields beside it")
    return text


def _ended(text: str, tokenizer: Any) -> str:
    end = tokenizer.eos_token or ""
    return text if text.endswith(end) else text + end


def _names(record: Record) -> str:
    return ", ".join(map(str, record.fields)) or "nothing"
