"""From a record to documents: plain text, a conversation through the chat template, a prompt and its completion, or
a preference pair, which makes two documents: the prompt with the chosen answer, and with the rejected one."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from arwkv_producer.text.records import Record
from arwkv_store.errors import UsageError
from arwkv_store.text.chat_template import ChatTemplate, Span
from arwkv_store.text.turns import HALVES, Turn, conversation, preference, shared_beginning, tools_of


@dataclass(frozen=True)
class Document:
    """A text, and the characters of it that a student learns to predict."""

    text: str
    source: str
    counted: tuple[Span, ...] | None = None
    """None: all of it."""
    pair: str = ""
    """For half of a preference pair: the whole pair. Halves are kept, held out or left out together."""
    roles: tuple[str, ...] = ()
    """Who speaks in a conversation, turn by turn."""

    @property
    def is_chosen(self) -> bool:
        """Whether the pair's other half comes next."""
        return bool(self.pair) and self.source.endswith("/chosen")


def plain_documents(records: Iterable[Record], field: str) -> Iterator[Document]:
    """The text in `field`, all of it counted; a record with `prompt` and `completion` instead counts the completion.

    A record with `chosen` and `rejected` instead is a preference pair; where it has no `prompt`, what both begin with
    is the prompt. Only the answers count. A null makes an empty document.
    """
    for record in records:
        names = _plain_fields(record, field)
        if any(name in record.fields and record.fields[name] is None for name in names):
            yield Document("", record.source)
            continue
        texts = {name: record.text(name) for name in names}
        if len(texts) == 1:
            yield Document(texts[field], record.source)
        elif "completion" in texts:
            yield _answer(texts["prompt"], texts["completion"], record.source)
        else:
            yield from _plain_pair(texts, record.source)


def _plain_fields(record: Record, field: str) -> tuple[str, ...]:
    """The fields that hold the record's text."""
    if field in record.fields:
        return (field,)
    if record.has(*HALVES):
        return ("prompt", *HALVES) if record.has("prompt") else HALVES
    return ("prompt", "completion") if record.has("prompt", "completion") else (field,)


def _plain_pair(texts: dict[str, str], source: str) -> Iterator[Document]:
    """Answers may contain the prompt, also if there is a separate `prompt`."""
    answers, prompt = [texts[half] for half in HALVES], texts.get("prompt")
    if prompt is None or all(answer.startswith(prompt) for answer in answers):
        prompt = answers[0][: shared_beginning(*answers)] if prompt is None else prompt
        answers = [answer[len(prompt) :] for answer in answers]
    pair = "\0".join((prompt, *(texts[half] for half in HALVES)))
    for half, answer in zip(HALVES, answers, strict=True):
        yield _answer(prompt, answer, f"{source}/{half}", pair=pair)


def _answer(prompt: str, answer: str, source: str, pair: str = "") -> Document:
    return Document(prompt + answer, source, ((len(prompt), len(prompt) + len(answer)),), pair)


def chat_documents(records: Iterable[Record], field: str, tokenizer: Any) -> Iterator[Document]:
    """Conversations in `field` (role and content, tool calls as the template knows them), assistant turns counted.

    Where `field` is absent: see `arwkv_store.text.turns` for `conversations`, `prompt` and `completion`, and the pairs
    `chosen` and `rejected`, of which only the answers' assistant turns count.
    """
    if not tokenizer.chat_template:
        raise UsageError("--chat: the teacher's tokenizer has no chat template; use an instruct model or plain text")
    for record in records:
        if field not in record.fields and record.has(*HALVES):
            yield from _chat_pair(record, tokenizer)
        elif (found := conversation(record.fields, record.where, field)) is None:
            yield Document("", record.source)
        else:
            yield _render(record, *found, tokenizer)


def _chat_pair(record: Record, tokenizer: Any) -> Iterator[Document]:
    found = preference(record.fields, record.where)
    if found is None:
        yield Document("", record.source)
        return
    *conversations, shared = found
    documents = [_render(record, turns, shared, tokenizer) for turns in conversations]
    pair = "\0".join(document.text for document in documents)
    for half, document in zip(HALVES, documents, strict=True):
        yield replace(document, source=f"{record.source}/{half}", pair=pair)


def _render(record: Record, turns: Sequence[Turn], first_counted: int, tokenizer: Any) -> Document:
    """The conversation, its assistant turns from `first_counted` on counted."""
    template = ChatTemplate(tokenizer, tools_of(record.fields, record.where), record.where)
    text, spans = template.render(turns)
    counted = tuple(span for number, span in spans.items() if number >= first_counted)
    return Document(text, record.source, counted, roles=tuple(turn["role"] for turn in turns))
