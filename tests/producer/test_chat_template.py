"""Assistant turns are found in templates that mark them, that write a turn differently when others follow, that add a
system prompt of their own, and that print the date."""

from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from arwkv_producer.text import chat_template
from arwkv_producer.text.conversations import chat_documents
from arwkv_producer.text.documents import Record
from arwkv_store.errors import UsageError

HEADER = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
THOUGHTS_IN_THE_LAST_TURN_ONLY = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' and loop.last %}<think>\n{{ m.thought or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|end|>\n{% endfor %}" + HEADER
)
"""As Qwen3's."""
THOUGHTS_SINCE_THE_LAST_QUESTION = (
    "{% set ns = namespace(asked=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.asked = loop.index %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' and loop.index > ns.asked %}<think>{{ m.thought }}</think>{% endif %}"
    "{{ m.content }}<|end|>\n{% endfor %}" + HEADER
)
SYSTEM_PROMPT_OF_ITS_OWN = (
    "{% if messages[0].role != 'system' %}<|system|>You are kind.<|end|>\n{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}" + HEADER
)
"""As Qwen2.5's."""
TODAYS_DATE = (
    "{% if not day is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}"
    "<|system|>Today: {{ day }}<|end|>\n"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}" + HEADER
)
"""As Llama 3's."""
MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}" + HEADER
)


@pytest.fixture(scope="module")
def tokenizer(tiny_teacher: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_teacher)


def said(*turns: str) -> list[dict[str, str]]:
    """Turns from `role: words`; an assistant's thought is its words in capitals."""
    messages = []
    for turn in turns:
        role, _, content = turn.partition(": ")
        messages.append({"role": role, "content": content, "thought": content.upper()})
    return messages


def counted(tokenizer: Any, template: str, messages: list[dict[str, str]]) -> list[str]:
    tokenizer.chat_template = template
    (document,) = chat_documents([Record({"messages": messages}, "r", "r")], "messages", tokenizer)
    assert document.counted is not None
    return [document.text[start:end] for start, end in document.counted]


SEVERAL = said("user: one", "assistant: two", "user: three", "assistant: four")
WITH_A_TOOL = said("user: one", "assistant: call", "tool: three", "assistant: four", "user: five", "assistant: six")


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        (THOUGHTS_IN_THE_LAST_TURN_ONLY, SEVERAL, ["two<|end|>\n", "<think>\nFOUR\n</think>\n\nfour<|end|>\n"]),
        (
            THOUGHTS_SINCE_THE_LAST_QUESTION,
            WITH_A_TOOL,
            ["call<|end|>\n", "four<|end|>\n", "<think>SIX</think>six<|end|>\n"],
        ),
        (SYSTEM_PROMPT_OF_ITS_OWN, SEVERAL, ["two<|end|>\n", "four<|end|>\n"]),
        (SYSTEM_PROMPT_OF_ITS_OWN, SEVERAL[1:], ["two<|end|>\n", "four<|end|>\n"]),
        (TODAYS_DATE, SEVERAL[1:], ["two<|end|>\n", "four<|end|>\n"]),
        (MARKED, SEVERAL, ["two<|end|>", "four<|end|>"]),
    ],
    ids=["thoughts last", "thoughts since question", "system prompt", "assistant first", "date", "marked"],
)
def test_assistant_turns_are_found(
    tokenizer: Any, template: str, messages: list[dict[str, str]], expected: list[str]
) -> None:
    assert counted(tokenizer, template, messages) == expected


def test_turns_that_repeat_each_other_are_told_apart(tokenizer: Any) -> None:
    turns = said("user: a", "assistant: a", "user: a", "assistant: a", "user: a")
    assert counted(tokenizer, THOUGHTS_IN_THE_LAST_TURN_ONLY, turns) == ["a<|end|>\n"] * 2


def test_a_template_that_rewrites_turns_within_is_refused(tokenizer: Any) -> None:
    rewriting = SYSTEM_PROMPT_OF_ITS_OWN.replace("{{ m.content }}", "{{ m.content }} {{ messages | length }}")
    with pytest.raises(UsageError, match="rewrites earlier turns, so turn 2 cannot be told"):
        counted(tokenizer, rewriting, SEVERAL)


def test_text_is_the_same_on_every_day(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on after midnight finds its corpus again."""
    import transformers.utils.chat_template_utils as templates

    tokenizer.chat_template = TODAYS_DATE
    texts = set()
    for day in (1, 2):
        monkeypatch.setattr(templates, "datetime", SimpleNamespace(now=lambda day=day: datetime(2031, 5, day)))
        (document,) = chat_documents([Record({"messages": SEVERAL}, "r", "r")], "messages", tokenizer)
        texts.add(document.text)
    assert len(texts) == 1
    assert chat_template.TODAY.strftime("%d %b %Y") in texts.pop()
