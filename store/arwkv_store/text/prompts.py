"""Prompts of a JSONL file, and the records that their answers become: text that a capture or stage sft reads."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from arwkv_store.errors import UsageError
from arwkv_store.text.chat_template import ChatTemplate
from arwkv_store.text.json_lines import require_characters
from arwkv_store.text.turns import FIELDS, HALVES, Turn, tools_of, turns_of

NOT_CARRIED = frozenset({*FIELDS, *HALVES, "prompt", "completion", "text"})
"""Fields that an answer's record says itself, or that a reader would take for its text."""


@dataclass(frozen=True)
class Prompt:
    """What a model continues, and what else its record says."""

    text: str
    """As the model reads it: plain, or through the chat template with the reply's header open."""
    turns: tuple[Turn, ...] | None
    """Of a conversation; None for plain text."""
    fields: Mapping[str, Any]
    """The record's other fields."""

    def answered(self, said: str, end: str, **about: Any) -> dict[str, Any]:
        """The record of an answer: `prompt` and `completion` (with `end` behind it), or `messages`; then `about`."""
        if self.turns is None:
            own: dict[str, Any] = {"prompt": self.text, "completion": said + end}
        else:
            own = {"messages": [*self.turns, {"role": "assistant", "content": said}]}
        return own | dict(self.fields) | about


def fingerprint(asked: Iterable[Prompt]) -> str:
    """sha256 over the prompts and what else their records say."""
    digest = hashlib.sha256()
    for prompt in asked:
        digest.update(
            json.dumps([prompt.text, prompt.turns, prompt.fields], sort_keys=True, default=str).encode() + b"\n"
        )
    return digest.hexdigest()


def prompts(records: Iterable[tuple[str, Mapping[str, Any]]], tokenizer: Any) -> Iterator[Prompt]:
    """The prompt of each (where, fields): a text in `prompt`, or turns in `prompt`, `messages` or `conversations`.

    A conversation is answered behind its last turn that is not the assistant's. Raises UsageError, naming the place,
    where there is no prompt, or turns for a tokenizer without chat template.
    """
    for where, fields in records:
        others = {name: value for name, value in fields.items() if name not in NOT_CARRIED}
        name = next((name for name in ("prompt", *FIELDS) if name in fields), None)
        if name is None:
            raise UsageError(f"{where}: no prompt or messages (it has: {', '.join(fields)}); add one of them")
        if isinstance(fields[name], str):
            yield Prompt(require_characters(fields[name], where), None, others)
            continue
        turns = turns_of(fields[name], where, name) or []
        while turns and turns[-1]["role"] == "assistant":
            turns.pop()
        if not turns:
            raise UsageError(f"{where}: {name} has no turn to answer; add a user's turn")
        if not tokenizer.chat_template:
            raise UsageError(f"{where}: {name} holds turns, but the tokenizer has no chat template; give a text")
        asked = ChatTemplate(tokenizer, tools_of(fields, where), where).ask(turns)
        yield Prompt(asked, tuple(turns), others)
