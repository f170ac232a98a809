"""A conversation as the teacher's chat template writes it, and which of its characters are the assistant's turns."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from arwkv_store.errors import UsageError

Span = tuple[int, int]
"""Characters from .. to (exclusive)."""
Turns = Sequence[Mapping[str, Any]]

TODAY = datetime(2024, 7, 26)
"""What a template that prints the day's date is told, so that a corpus is the same every day: the day that Llama's
template names where it knows none."""
MARKS_TURNS = re.compile(r"\{%-?\s*generation\s*-?%\}")
LOOKED_FOR = 20
"""Characters at the end of a turn's last line that must be found where the turn is."""


class ChatTemplate:
    """The tokenizer's template, for the conversations of one record with its tools."""

    def __init__(self, tokenizer: Any, tools: Any, where: str) -> None:
        self._tokenizer, self._tools, self._where = tokenizer, tools, where

    def render(self, turns: Turns) -> tuple[str, list[Span]]:
        """The conversation's text, and where each assistant turn is: from behind its header to its last token.

        Raises UsageError where the template refuses the conversation, or a turn cannot be told from the rest.
        """
        try:
            text = self._text(turns, False)
            marked = self._marked(turns)
            spans = list(self._located(text, turns)) if marked is None else marked
        except UsageError:
            raise
        except Exception as error:  # a template is a program of its own and may raise anything
            raise UsageError(f"{self._where}: the chat template refuses it ({error}); mend the conversation") from error
        return text, spans

    def _text(self, turns: Turns, header: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                turns, tools=self._tools, tokenize=False, add_generation_prompt=header, strftime_now=TODAY.strftime
            )
        )

    def _marked(self, turns: Turns) -> list[Span] | None:
        """What the template itself marks as generated, where it marks every assistant turn once; else None."""
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self._tokenizer.get_chat_template(tools=self._tools)
        if not MARKS_TURNS.search(template):
            return None
        _, (spans,) = render_jinja_template(
            [turns],
            tools=self._tools,
            chat_template=template,
            return_assistant_tokens_mask=True,
            strftime_now=TODAY.strftime,
            **self._tokenizer.special_tokens_map,
        )
        assistants = sum(turn["role"] == "assistant" for turn in turns)
        return list(spans) if len(spans) == assistants else None

    def _located(self, text: str, turns: Turns) -> Iterator[Span]:
        """A turn begins where the conversation before it ends with the reply's header open, and ends where the
        conversation up to it ends.

        A template may write turns differently when others follow (Qwen3 leaves thoughts out of all but the last), so
        that neither is how the text begins. Then both end in what stands in the text behind the turn before.
        """
        end = 0
        for number, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            opened = self._text(turns[:number], True) if number else text[: self._first_header(text)]
            start = len(opened) if text.startswith(opened) else end + _overlap(opened, text[end:])
            closed = self._text(turns[: number + 1], False)
            behind = len(closed) if text.startswith(closed) else start + _overlap(closed, text[start:])
            if not end <= start < behind or _last_words(turn) not in text[start:behind]:
                raise UsageError(
                    f"{self._where}: the chat template rewrites earlier turns, so turn {number + 1} cannot be told "
                    "from the rest; cut the conversation there"
                )
            end = behind
            yield start, end

    def _first_header(self, text: str) -> int:
        """Where the first reply's header ends in a conversation that the assistant begins: the template may write a
        system prompt of its own before it."""
        asked = [{"role": "user", "content": "?"}]
        header = self._text(asked, True).removeprefix(self._text(asked, False))
        return text.index(header) + len(header)


def _last_words(turn: Mapping[str, Any]) -> str:
    content = turn.get("content")
    return content.strip().rpartition("\n")[2][-LOOKED_FOR:] if isinstance(content, str) else ""


def _overlap(before: str, after: str) -> int:
    """The length of the longest end of `before` that `after` begins with."""
    first = after[:1]
    start = before.find(first, max(len(before) - len(after), 0)) if first else -1
    while start >= 0:
        if after.startswith(before[start:]):
            return len(before) - start
        start = before.find(first, start + 1)
    return 0
