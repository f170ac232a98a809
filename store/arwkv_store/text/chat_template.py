"""A conversation as a chat template writes it, and which of its characters are the assistant's replies."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from arwkv_store.errors import UsageError
from arwkv_store.text.json_lines import require_characters
from arwkv_store.text.turns import shared_beginning

Span = tuple[int, int]
"""Characters from .. to (exclusive)."""
Turns = Sequence[Mapping[str, Any]]

TODAY = datetime(2024, 7, 26)
"""The date for a template that prints the current date, so that a corpus is the same every day: the day that Llama's
template names where it knows none."""
ASKED = {"role": "user", "content": "?"}
STAND_IN = "\ue000"
"""A private character, said instead of a reply to see where the template writes the reply."""
END = "\ue001"
BEGIN_MARK, END_MARK = re.compile(r"(\{%-?\s*generation\s*-?%\})\n?"), re.compile(r"\{%-?\s*endgeneration\s*-?%\}")
THOUGHTS_END = re.compile(r"</(?:think|thinking|thought|reasoning)>|\[/THINK\]")


class ChatTemplate:
    """The tokenizer's template, for the conversations of one record with its tools."""

    def __init__(self, tokenizer: Any, tools: Any, where: str) -> None:
        self._tokenizer, self._tools, self._where = tokenizer, tools, where

    def render(self, turns: Turns) -> tuple[str, dict[int, Span]]:
        """The conversation's text, and where each assistant turn's reply is, by the turn's number from 0.

        A reply goes from behind the header that asks for it to its end token. Where the template marks replies with
        `{% generation %}`, those are they; else a reply is what its turn adds to the text. Raises UsageError where the
        template refuses the conversation, or what would count is not what the assistant said.
        """
        try:
            text = require_characters(self._text(turns), self._where)
            spans = self._marked(text, turns)
            return text, dict(self._located(text, turns)) if spans is None else spans
        except UsageError:
            raise
        except Exception as error:  # a template is a program and may raise anything
            raise UsageError(f"{self._where}: the chat template refuses it ({error}); fix the conversation") from error

    def ask(self, turns: Turns) -> str:
        """The conversation with the next reply's header open. Raises UsageError where the template refuses it."""
        try:
            return require_characters(self._text(turns, header=True), self._where)
        except UsageError:
            raise
        except Exception as error:  # a template is a program and may raise anything
            raise UsageError(f"{self._where}: the chat template refuses it ({error}); fix the conversation") from error

    def end_mark(self) -> str:
        """What the template writes behind the last reply's words. Raises UsageError where it writes no such reply."""
        text, spans = self.render([ASKED, {"role": "assistant", "content": END}])
        return text[text.index(END) + len(END) : spans[1][1]].strip()

    def _text(self, turns: Turns, header: bool = False, template: str | None = None) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                turns,
                tools=self._tools,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=header,
                strftime_now=TODAY.strftime,
            )
        )

    def _marked(self, text: str, turns: Turns) -> dict[int, Span] | None:
        """What the template itself marks as generated, where it marks the words of every assistant turn; else None."""
        template = self._tokenizer.get_chat_template(tools=self._tools)
        if not BEGIN_MARK.search(template) or STAND_IN in text or END in text:
            return None
        marking = BEGIN_MARK.sub(lambda tag: f"{tag[1]}{{{{ '{STAND_IN}' }}}}", template)
        marking = END_MARK.sub(lambda tag: f"{{{{ '{END}' }}}}{tag[0]}", marking)
        pieces = self._text(turns, template=marking).split(STAND_IN)
        replies = [piece.partition(END)[0] for piece in pieces[1:]]
        numbers = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
        if "".join(pieces).replace(END, "") != text or len(replies) != len(numbers):
            return None
        starts = [sum(len(piece.replace(END, "")) for piece in pieces[: nth + 1]) for nth in range(len(replies))]
        if not all(_says(reply, turns[number]) for reply, number in zip(replies, numbers, strict=True)):
            return None
        return {n: (start, start + len(reply)) for n, start, reply in zip(numbers, starts, replies, strict=True)}

    def _located(self, text: str, turns: Turns) -> Iterator[tuple[int, Span]]:
        end = 0
        for number, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            span = self._added(text, turns, number) or self._isolated(text, turns, number, end)
            if span is None or span[0] < end or not _says(text[slice(*span)], turn):
                raise UsageError(
                    f"{self._where}: the chat template of {self._tokenizer.name_or_path} rewrites earlier turns, so "
                    f"turn {number + 1} cannot be located; truncate the conversation there, or fix the template"
                )
            start, end = span[0], span[0] + _without_space_behind_the_end(text[slice(*span)], turn)
            yield number, (start, end)

    def _added(self, text: str, turns: Turns, number: int) -> Span | None:
        """What the turn adds to the conversation before it with the reply's header open, where the text begins so."""
        opened = self._text(turns[:number], header=True) if number else None
        if opened is None or not text.startswith(opened):
            return None
        closed = text if number + 1 == len(turns) else self._text(turns[: number + 1])
        return (len(opened), len(closed)) if text.startswith(closed) and len(opened) <= len(closed) else None

    def _isolated(self, text: str, turns: Turns, number: int, after: int) -> Span | None:
        """What changes when the turn says something else, where the text does not begin with what came before.

        Templates write turns differently when others follow (thoughts are left out of all but the last), or open a
        reply with what they do not write before it later. What the conversation that ends here has behind the words
        ends the turn; what stands between the reply's header and the words is the reply's too.
        """
        closed, before, behind = self._text(turns[: number + 1]), turns[:number], turns[number + 1 :]
        said: dict[str, Any] = {**turns[number], "content": STAND_IN}
        words = _difference(text, self._text([*before, said, *behind]))
        if words is None:  # a tool call may hide the words
            said = {"role": "assistant", "content": STAND_IN}
            words = _difference(text, self._text([*before, said, *behind]))
        elif not _squashed(_spoken(turns[number])).endswith(_squashed(text[slice(*words)])):
            return None
        own = _difference(closed, self._text([*before, said]))
        if words is None or own is None or STAND_IN in text:
            return None
        first, last = words
        mark = closed[own[1] :].rstrip()
        header = self._text([ASKED], header=True).removeprefix(self._text([ASKED]))
        found = text.rfind(header, after, first) if header else -1
        start = first if found < 0 else found + len(header)
        return (start, last + len(mark)) if text.startswith(mark, last) else None


def _difference(text: str, other: str) -> Span | None:
    """The part of a text that the other has otherwise; None where they are the same."""
    if text == other:
        return None
    first = shared_beginning(text, other)
    return first, len(text) - shared_beginning(text[first:][::-1], other[first:][::-1])


def _says(counted: str, turn: Mapping[str, Any]) -> bool:
    """Whether the text that counts holds all words of the turn, except thoughts. A tool call may replace words."""
    words = _squashed(THOUGHTS_END.split(_spoken(turn))[-1])
    return words in _squashed(counted) or bool(counted.strip() and turn.get("tool_calls"))


def _spoken(turn: Mapping[str, Any]) -> str:
    """The turn's words; a list of parts may hold other things too."""
    content = turn.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))


def _without_space_behind_the_end(counted: str, turn: Mapping[str, Any]) -> int:
    """The reply's length to its end token, where there is one; space alone may be what ends a turn."""
    stripped, words = counted.rstrip(), _spoken(turn).strip()
    return len(counted) if words and stripped.endswith(words) else len(stripped)


def _squashed(text: str) -> str:
    return "".join(text.split())
