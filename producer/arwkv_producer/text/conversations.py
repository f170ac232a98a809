"""From a record to documents: plain text, a conversation through the chat template, a prompt and its completion, or
a preference pair, which makes two documents: the prompt with the chosen answer, and with the rejected one."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from arwkv_producer.text.chat_template import ChatTemplate, Span
from arwkv_producer.text.documents import Record
from arwkv_store.errors import UsageError


@dataclass(frozen=True)
class Document:
    """A text, and which of its characters a student is to predict."""

    text: str
    source: str
    counted: tuple[Span, ...] | None = None
    """None: all of it."""
    pair: str = ""
    """Of a preference pair's half: the whole pair. Halves are kept, held out or left out together."""

    @property
    def is_chosen(self) -> bool:
        """Whether the pair's other half comes next."""
        return bool(self.pair) and self.source.endswith("/chosen")


HALVES = ("chosen", "rejected")


def plain_documents(records: Iterable[Record], field: str) -> Iterator[Document]:
    """The text in `field`, all of it counted; a record with `prompt` and `completion` instead counts the completion.

    A record with `chosen` and `rejected` instead is a preference pair; where it has no `prompt`, what both begin with
    is the prompt. Only the answers count. A null in `field` makes an empty document.
    """
    for record in records:
        if field in record.fields and record.fields[field] is None:
            yield Document("", record.source)
        elif field in record.fields or not (_has(record, *HALVES) or _has(record, "prompt", "completion")):
            yield Document(record.text(field), record.source)
        elif _has(record, *HALVES):
            yield from _plain_pair(record)
        else:
            prompt = record.text("prompt")
            yield _answer(prompt, record.text("completion"), record.source)


def _plain_pair(record: Record) -> Iterator[Document]:
    texts = [record.text(half) for half in HALVES]
    shared = 0 if _has(record, "prompt") else _shared_beginning(*texts)
    prompt = record.text("prompt") if _has(record, "prompt") else texts[0][:shared]
    for half, text in zip(HALVES, texts, strict=True):
        yield _answer(prompt, text[shared:], f"{record.source}/{half}", pair="\0".join((prompt, *texts)))


def _answer(prompt: str, answer: str, source: str, pair: str = "") -> Document:
    return Document(prompt + answer, source, ((len(prompt), len(prompt) + len(answer)),), pair)


def chat_documents(records: Iterable[Record], field: str, tokenizer: Any) -> Iterator[Document]:
    """Conversations in `field` (role and content, tool calls as the template knows them), assistant turns counted.

    `prompt` and `completion` are taken as a user's and an assistant's turn where `field` is absent; so are `prompt` (or
    the turns that both begin with), `chosen` and `rejected`, of which only the answers' assistant turns count.
    """
    if not tokenizer.chat_template:
        raise UsageError("--chat: the teacher's tokenizer has no chat template; use an instruct model or plain text")
    for record in records:
        if field in record.fields and record.fields[field] is None:
            yield Document("", record.source)
            continue
        if field not in record.fields and _has(record, *HALVES):
            yield from _chat_pair(record, tokenizer)
            continue
        if field not in record.fields and _has(record, "prompt", "completion"):
            messages: Any = [*_turns(record, "prompt", "user"), *_turns(record, "completion", "assistant")]
        else:
            messages = record.value(field)
        _require_messages(record, field, messages)
        yield _render(record, messages, tokenizer)


def _chat_pair(record: Record, tokenizer: Any) -> Iterator[Document]:
    chosen, rejected = (_turns(record, half, "assistant") for half in HALVES)
    if _has(record, "prompt"):
        prompt = _turns(record, "prompt", "user")
        chosen, rejected = prompt + chosen, prompt + rejected
    first_counted = len(prompt) if _has(record, "prompt") else _shared_beginning(chosen, rejected)
    for half, messages in zip(HALVES, (chosen, rejected), strict=True):
        _require_messages(record, half, messages)
    documents = [_render(record, messages, tokenizer, first_counted) for messages in (chosen, rejected)]
    pair = "\0".join(document.text for document in documents)
    for half, document in zip(HALVES, documents, strict=True):
        yield replace(document, source=f"{record.source}/{half}", pair=pair)


def _shared_beginning(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items (characters, turns) both begin with."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _has(record: Record, *fields: str) -> bool:
    return set(fields) <= record.fields.keys()


def _render(record: Record, messages: Sequence[Mapping[str, Any]], tokenizer: Any, first_counted: int = 0) -> Document:
    """The conversation, its assistant turns from `first_counted` on counted."""
    text, spans = ChatTemplate(tokenizer, record.fields.get("tools"), record.where).render(messages)
    before = sum(message["role"] == "assistant" for message in messages[:first_counted])
    return Document(text, record.source, tuple(spans[before:]))


def _turns(record: Record, field: str, role: str) -> list[Any]:
    value = record.value(field)
    return list(value) if isinstance(value, list) else [{"role": role, "content": record.text(field)}]


def _require_messages(record: Record, field: str, messages: Any) -> None:
    if not isinstance(messages, list) or not all(isinstance(turn, dict) and "role" in turn for turn in messages):
        raise UsageError(
            f'{record.where}: field {field!r} is no list of {{"role": …}} turns; name another with --field'
        )
