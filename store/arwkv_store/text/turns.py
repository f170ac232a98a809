"""Conversations as data sets hold them, brought to the form that chat templates read: turns of `role` and `content`."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from arwkv_store.errors import UsageError

Turn = dict[str, Any]
"""`role` and `content`, and what else the chat template knows."""

FIELDS = ("messages", "conversations", "conversation")
"""Where records keep a conversation."""
ROLES = {
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "ai"), "assistant"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "system": "system",
}
"""The names that data sets give to speakers, in lower case, and what chat templates call them. Others stay."""
INSTEAD_OF_WORDS = {"tool_calls", "function_call", "reasoning_content", "thinking"}
HALVES = ("chosen", "rejected")


def conversation(fields: Mapping[str, Any], where: str, field: str = FIELDS[0]) -> tuple[list[Turn], int] | None:
    """A record's conversation and its first turn that may count, or None where a null stands for either.

    It is what `field` holds, or another of FIELDS where that is `messages`; or `prompt` and `completion`, texts or
    turns, of which the completion may count. Raises UsageError where there is none.
    """
    names = FIELDS if field == FIELDS[0] else (field,)
    name = next((name for name in names if name in fields), None)
    if name is not None:
        turns = turns_of(fields[name], where, name)
        return None if turns is None else (_with_system(turns, fields if name != FIELDS[0] else {}), 0)
    if not {"prompt", "completion"} <= fields.keys():
        raise UsageError(
            f"{where}: neither `{field}` nor `prompt` and `completion` (it has: {', '.join(map(str, fields))}); "
            "name another field, or fix the line"
        )
    prompt = _said(fields["prompt"], "user", where, "prompt")
    reply = _said(fields["completion"], "assistant", where, "completion")
    return None if prompt is None or reply is None else (prompt + reply, len(prompt))


def preference(fields: Mapping[str, Any], where: str) -> tuple[list[Turn], list[Turn], int] | None:
    """The conversations with the chosen and with the rejected answer, and their first turn that may count.

    `chosen` and `rejected` are answers to `prompt`, or whole conversations that contain it (or there is no `prompt`).
    None where a null stands for one of them.
    """
    chosen, rejected = (_said(fields[half], "assistant", where, half) for half in HALVES)
    prompt = _said(fields["prompt"], "user", where, "prompt") if "prompt" in fields else []
    if chosen is None or rejected is None or prompt is None:
        return None
    shared = min(shared_beginning(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    if not prompt or _words(prompt[-1]) in map(_words, chosen[:shared]):
        return chosen, rejected, shared
    return prompt + chosen, prompt + rejected, len(prompt)


def shared_beginning(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items (characters, turns) both begin with."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def turns_of(value: Any, where: str, field: str) -> list[Turn] | None:
    """A list of turns in the templates' form; None for a null, no turn, or a turn whose words are a null.

    Raises UsageError for what is no list of turns.
    """
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(turn, dict) and _role(turn) for turn in value):
        raise UsageError(
            f'{where}: field {field!r} is not a list of {{"role": …, "content": …}} or {{"from": …, "value": …}} '
            "turns; name another field, or fix the line"
        )
    turns = [_turn(turn, f"{where}: turn {number}") for number, turn in enumerate(value, start=1)]
    return None if any(turn["content"] is None for turn in turns) else turns


def tools_of(fields: Mapping[str, Any], where: str) -> Any:
    """What the record offers the assistant; data sets of one type a column hold it as a JSON string."""
    tools = fields.get("tools")
    return _parsed(tools, f"{where}: field 'tools'") if isinstance(tools, str) and tools.strip() else tools or None


def _said(value: Any, role: str, where: str, field: str) -> list[Turn] | None:
    return [{"role": role, "content": value}] if isinstance(value, str) else turns_of(value, where, field)


def _role(turn: Mapping[str, Any]) -> str:
    role = turn.get("role") or turn.get("from")
    return ROLES.get(role.lower(), role) if isinstance(role, str) else ""


def _turn(turn: Mapping[str, Any], where: str) -> Turn:
    """A table gives every turn every column: nulls are left out, for templates that ask whether a key is there."""
    known = {name: value for name, value in turn.items() if value is not None and name not in ("from", "value")}
    known |= {"role": _role(turn), "content": turn.get("content", turn.get("value"))}
    if calls := known.get("tool_calls"):
        known["tool_calls"] = [_call(call, where) for call in calls]
    if known["content"] is None and known.keys() & INSTEAD_OF_WORDS:
        known["content"] = ""
    elif not {"content", "value"} & turn.keys():
        raise UsageError(f"{where} has no content (it has: {', '.join(turn)}); fix or remove the line")
    return known


def _call(call: Any, where: str) -> Any:
    """A tool call with its arguments as an object: templates write them as JSON, which a string would be twice."""
    if not isinstance(call, dict):
        return call
    call = {name: value for name, value in call.items() if value is not None}
    if "function" in call:
        call["function"] = _call(call["function"], where)
    if isinstance(call.get("arguments"), str):
        call["arguments"] = _parsed(call["arguments"], f"{where}: the arguments of its tool call")
    return call


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what} are not JSON ({error}); fix or remove the line") from error


def _with_system(turns: list[Turn], fields: Mapping[str, Any]) -> list[Turn]:
    """`conversations` may have their system prompt in a separate field."""
    system = fields.get("system")
    if not isinstance(system, str) or not system or turns[0]["role"] == "system":
        return turns
    return [{"role": "system", "content": system}, *turns]


def _words(turn: Turn) -> tuple[str, Any]:
    content = turn["content"]
    return turn["role"], content.strip() if isinstance(content, str) else content
