"""From a record to a document: plain text, a conversation through the chat template, or a prompt and its completion."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arwkv_producer.documents import Record
from arwkv_store.errors import UsageError

Span = tuple[int, int]
"""Characters from .. to (exclusive)."""


@dataclass(frozen=True)
class Document:
    """A text, and which of its characters a student is to predict."""

    text: str
    source: str
    counted: tuple[Span, ...] | None = None
    """None: all of it."""


def plain_documents(records: Iterable[Record], field: str) -> Iterator[Document]:
    """The text in `field`, all of it counted; a record with `prompt` and `completion` instead counts the completion."""
    for record in records:
        if field not in record.fields and {"prompt", "completion"} <= record.fields.keys():
            prompt, completion = record.text("prompt"), record.text("completion")
            yield Document(prompt + completion, record.source, ((len(prompt), len(prompt) + len(completion)),))
        else:
            yield Document(record.text(field), record.source)


def chat_documents(records: Iterable[Record], field: str, tokenizer: Any) -> Iterator[Document]:
    """Conversations in `field` (role and content, tool calls as the template knows them), assistant turns counted.

    `prompt` and `completion` are taken as a user's and an assistant's turn where `field` is absent.
    """
    if not tokenizer.chat_template:
        raise UsageError("--chat: the teacher's tokenizer has no chat template; use an instruct model or plain text")
    for record in records:
        if field not in record.fields and {"prompt", "completion"} <= record.fields.keys():
            messages: Any = [*_turns(record, "prompt", "user"), *_turns(record, "completion", "assistant")]
        else:
            messages = record.value(field)
        _require_messages(record, field, messages)
        yield _render(record, messages, record.fields.get("tools"), tokenizer)


def _render(record: Record, messages: Sequence[Mapping[str, Any]], tools: Any, tokenizer: Any) -> Document:
    """An assistant turn's characters are those it adds to the conversation before it with the reply's header open."""

    def rendered(turns: Sequence[Mapping[str, Any]], header: bool) -> str:
        return str(tokenizer.apply_chat_template(turns, tools=tools, tokenize=False, add_generation_prompt=header))

    try:
        text = rendered(messages, False)
        counted = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            opened = rendered(messages[:turn], True) if turn else ""
            closed = rendered(messages[: turn + 1], False)
            if not text.startswith(opened) or not text.startswith(closed):
                raise UsageError(
                    f"{record.where}: the chat template rewrites earlier turns, so turn {turn + 1} cannot be told from "
                    "the rest; cut the conversation there"
                )
            counted.append((len(opened), len(closed)))
    except UsageError:
        raise
    except Exception as error:  # a template is a program of its own and may raise anything
        raise UsageError(f"{record.where}: the chat template refuses it ({error}); mend the conversation") from error
    return Document(text, record.source, tuple(counted))


def _turns(record: Record, field: str, role: str) -> list[Any]:
    value = record.value(field)
    return list(value) if isinstance(value, list) else [{"role": role, "content": record.text(field)}]


def _require_messages(record: Record, field: str, messages: Any) -> None:
    if not isinstance(messages, list) or not all(isinstance(turn, dict) and "role" in turn for turn in messages):
        raise UsageError(
            f'{record.where}: field {field!r} is no list of {{"role": …}} turns; name another with --field'
        )
