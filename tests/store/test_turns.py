"""Conversations in the layouts that people have, brought to one form without a turn twice or lost."""

from typing import Any

import pytest

from arwkv_store.errors import UsageError
from arwkv_store.text.turns import conversation, preference, tools_of

ASKED, GREEN, CLOUD = (
    {"role": role, "content": words} for role, words in (("user", "tea?"), ("assistant", "green"), ("assistant", "no"))
)
SYSTEM = {"role": "system", "content": "be kind"}


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [ASKED, GREEN]},
        {"messages": [{"role": "human", "content": "tea?"}, {"role": "gpt", "content": "green"}]},
        {"messages": [{"role": "User", "content": "tea?"}, {"role": "ASSISTANT", "content": "green"}]},
        {"conversations": [{"from": "human", "value": "tea?"}, {"from": "gpt", "value": "green"}]},
        {"conversations": [ASKED | {"tool_calls": None, "name": None}, GREEN]},
        {"prompt": "tea?", "completion": "green"},
        {"prompt": [ASKED], "completion": [GREEN]},
        {"prompt": "tea?", "completion": [GREEN]},
    ],
)
def test_every_layout_gives_the_same_turns(fields: dict[str, Any]) -> None:
    found = conversation(fields, "r")
    assert found is not None
    assert found[0] == [ASKED, GREEN]


def test_a_system_prompt_beside_the_conversation_comes_first() -> None:
    fields = {"system": "be kind", "conversations": [{"from": "human", "value": "tea?"}]}
    assert conversation(fields, "r") == ([SYSTEM, ASKED], 0)


@pytest.mark.parametrize(
    ("fields", "shared"),
    [
        ({"prompt": "tea?", "chosen": [ASKED, GREEN], "rejected": [ASKED, CLOUD]}, 1),
        ({"prompt": " tea?\n", "chosen": [ASKED, GREEN], "rejected": [ASKED, CLOUD]}, 1),
        ({"prompt": [ASKED], "chosen": [ASKED, GREEN], "rejected": [ASKED, CLOUD]}, 1),
        ({"prompt": "tea?", "chosen": [SYSTEM, ASKED, GREEN], "rejected": [SYSTEM, ASKED, CLOUD]}, 2),
        ({"prompt": None, "chosen": None, "rejected": [CLOUD]}, None),
        ({"prompt": "tea?", "chosen": "green", "rejected": "no"}, 1),
        ({"prompt": "tea?", "chosen": [GREEN], "rejected": [CLOUD]}, 1),
        ({"prompt": [SYSTEM], "chosen": [ASKED, GREEN], "rejected": [ASKED, CLOUD]}, 1),
        ({"chosen": [ASKED, GREEN], "rejected": [ASKED, CLOUD]}, 1),
        ({"chosen": [ASKED, GREEN], "rejected": [ASKED, GREEN]}, 1),
    ],
)
def test_a_question_stands_once_in_each_half_of_a_preference(fields: dict[str, Any], shared: int | None) -> None:
    found = preference(fields, "r")
    if shared is None:
        assert found is None
        return
    assert found is not None
    chosen, rejected, first_counted = found
    assert first_counted == shared
    assert [turn for turn in chosen if turn["role"] == "user"] == [ASKED]
    assert (chosen[-2:], rejected[-2]) == ([ASKED, GREEN], ASKED)
    assert chosen[: len(chosen) - 2] in ([], [SYSTEM])


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": None},
        {"messages": []},
        {"messages": [ASKED, {"role": "assistant", "content": None}]},
        {"prompt": "tea?", "completion": None},
        {"prompt": None, "completion": "green"},
    ],
)
def test_a_null_is_no_conversation(fields: dict[str, Any]) -> None:
    assert conversation(fields, "r") is None


def test_arguments_and_tools_in_json_strings_are_read_once() -> None:
    call = {"function": {"name": "add", "arguments": '{"x": 1}'}}
    found = conversation({"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}]}, "r")
    assert found is not None
    (turn,) = found[0][1:]
    assert turn["content"] == ""
    assert turn["tool_calls"] == [{"function": {"name": "add", "arguments": {"x": 1}}}]
    assert tools_of({"tools": '[{"name": "add"}]'}, "r") == [{"name": "add"}]
    assert tools_of({"tools": ""}, "r") is tools_of({}, "r") is None


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "r: field 'messages' is not a list of"),
        ([{"content": "no role"}], "r: field 'messages' is not a list of"),
        ([3], "r: field 'messages' is not a list of"),
        ([{"role": "user", "text": "tea?"}], r"r: turn 1 has no content \(it has: role, text\)"),
        (
            [{"role": "assistant", "tool_calls": [{"arguments": "{"}]}],
            "r: turn 1: the arguments of its tool call are no",
        ),
    ],
)
def test_what_is_no_conversation_is_refused_by_turn(messages: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        conversation({"messages": messages}, "r")
