"""The data of stages sft and dpo: JSONL records as token ids, with the reply's tokens marked.

A text is split where a reply begins and ends, and each piece is tokenized separately. The student then learns from the
same ids as in generation, because the tokenizer cannot merge characters across that border.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arwkv_store.errors import NotFound, UsageError
from arwkv_store.text.chat_template import ChatTemplate
from arwkv_store.text.json_lines import decompressed, json_lines, require_characters
from arwkv_store.text.turns import FIELDS, HALVES, Turn, conversation, preference, tools_of

# The label that losses ignore, in torch and transformers.
IGNORED = -100


@dataclass(frozen=True)
class Piece:
    """A part of a text, and whether the student learns to predict it."""

    text: str
    counted: bool


@dataclass(frozen=True)
class Example:
    """One conversation: token ids [T], and the same as labels, IGNORED for tokens outside replies. Not shifted."""

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
    """One line of a JSONL file, and its place."""

    fields: Mapping[str, Any]
    where: str

    def has_texts(self, *names: str) -> bool:
        """Whether all of these fields exist, and none holds turns."""
        return set(names) <= self.fields.keys() and not any(isinstance(self.fields[name], list) for name in names)

    def text(self, name: str) -> str:
        """The string in a field. Raises UsageError if it is not a string."""
        text = self.fields[name]
        if not isinstance(text, str):
            raise UsageError(f"{self.where}: `{name}` is {type(text).__name__}, not text like the fields beside it")
        return require_characters(text, self.where)


def read_records(file: Path, flag: str = "--data") -> Iterator[Record]:
    """Yield the objects of a JSONL file, compressed or not.

    Raises NotFound without the file, UsageError for a line that is not an object.
    """
    try:
        with file.open("rb") as stored, decompressed(stored, file.name) as lines:
            for number, fields in json_lines(lines, str(file)):
                yield Record(fields, f"{file}:{number}")
    except (OSError, EOFError) as error:
        raise NotFound(f"{flag} {file}: {error}; name a JSONL file in UTF-8") from error


def examples(records: Iterator[Record], tokenizer: Any, max_length: int) -> Iterator[Example]:
    """Conversations (`messages`) or `prompt` and `completion`, truncated to their first `max_length` tokens.

    Assistant turns count, to their end; a plain completion gets the end-of-text token. A conversation without a counted
    token is left out.
    """
    for record in records:
        ids: list[int] = []
        labels: list[int] = []
        for piece in _pieces(record, tokenizer):
            own = _ids(piece.text, tokenizer)
            ids += own
            labels += own if piece.counted else [IGNORED] * len(own)
        # No token before the first one predicts it, so it never counts.
        labels = [IGNORED, *labels[1:max_length]]
        if any(label != IGNORED for label in labels):
            yield Example(ids[:max_length], labels)


def pairs(records: Iterator[Record], tokenizer: Any, max_length: int) -> Iterator[Pair]:
    """Preferences: `prompt`, `chosen` and `rejected`, as texts or as turns; without `prompt`, the shared first turns.

    A pair is left out if the prompt alone fills `max_length`, or if one of them is null. The replies are truncated
    where they are used: see `arwkv_student.training.dpo`.
    """
    for record in records:
        texts = _prompt_and_replies(record, tokenizer)
        if texts is None:
            continue
        prompt_ids, chosen_ids, rejected_ids = (_ids(text, tokenizer) for text in texts)
        if len(prompt_ids) < max_length:
            yield Pair(prompt_ids, chosen_ids, rejected_ids)


def _ids(text: str, tokenizer: Any) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []
    return ids


def _pieces(record: Record, tokenizer: Any) -> list[Piece]:
    """No pieces if the text is null."""
    if not record.fields.keys() & set(FIELDS) and record.has_texts("prompt", "completion"):
        if record.fields["prompt"] is None or record.fields["completion"] is None:
            return []
        return [Piece(record.text("prompt"), False), Piece(_ended(record.text("completion"), tokenizer), True)]
    found = conversation(record.fields, record.where)
    return [] if found is None else _chat_pieces(record, *found, tokenizer)


def _chat_pieces(record: Record, turns: list[Turn], first_counted: int, tokenizer: Any) -> list[Piece]:
    """Replies from turn `first_counted` on count.

    A first turn is not a reply, for any role: there is no text before it. The same holds for a template's system
    prompt.
    """
    text, spans = _template(record, tokenizer).render(turns)
    pieces, at = [], 0
    for number, (start, end) in spans.items():
        if number >= max(first_counted, 1):
            pieces += [Piece(text[at:start], False), Piece(text[start:end], True)]
            at = end
    return [*pieces, Piece(text[at:], False)]


def _prompt_and_replies(record: Record, tokenizer: Any) -> tuple[str, str, str] | None:
    """None if one of them is null."""
    missing = set(HALVES) - record.fields.keys()
    if missing:
        raise UsageError(f"{record.where}: no `{min(missing)}`; a preference has prompt, chosen and rejected")
    if any(record.fields[name] is None for name in ("prompt", *HALVES) if name in record.fields):
        return None
    if record.has_texts(*HALVES) and not isinstance(record.fields.get("prompt"), list):
        return _plain_pair(record, tokenizer)
    found = preference(record.fields, record.where)
    if found is None:
        return None
    *conversations, shared = found
    if not shared:
        raise UsageError(f"{record.where}: chosen and rejected share no first turn; add a `prompt`")
    template = _template(record, tokenizer)
    prompts, replies = set(), []
    for turns in conversations:
        text, spans = template.render(turns)
        counted = [span for number, span in spans.items() if number >= shared]
        if not counted:
            raise UsageError(f"{record.where}: no assistant turn answers the prompt; fix or remove the line")
        prompts.add(text[: counted[0][0]])
        replies.append(text[counted[0][0] : counted[-1][1]])
    if len(prompts) > 1:
        raise UsageError(f"{record.where}: the chat template changes the prompt after the reply; use another template")
    return prompts.pop(), replies[0], replies[1]


def _plain_pair(record: Record, tokenizer: Any) -> tuple[str, str, str]:
    """Both answers may be given with the prompt before them."""
    if "prompt" not in record.fields:
        raise UsageError(f"{record.where}: no `prompt`; without it chosen and rejected must be lists of turns")
    prompt, *answers = (record.text(name) for name in ("prompt", *HALVES))
    if all(answer.startswith(prompt) for answer in answers):
        answers = [answer[len(prompt) :] for answer in answers]
    chosen, rejected = (_ended(answer, tokenizer) for answer in answers)
    return prompt, chosen, rejected


def _template(record: Record, tokenizer: Any) -> ChatTemplate:
    if not tokenizer.chat_template:
        raise UsageError(
            f"{record.where}: the line holds turns, but the tokenizer has no chat template; give --chat-template FILE"
        )
    return ChatTemplate(tokenizer, tools_of(record.fields, record.where), record.where)


def _ended(text: str, tokenizer: Any) -> str:
    end = tokenizer.eos_token or ""
    return text if text.endswith(end) else text + end
