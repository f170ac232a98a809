"""Replies are found in templates of every usual manner: those that mark them, that write a turn differently when others
follow, that open a reply with a thought, that add a system prompt, that print the date."""

from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from arwkv_store.errors import UsageError
from arwkv_store.text import chat_template
from arwkv_store.text.chat_template import ChatTemplate

HEADER = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
TURN = "<|{{ m.role }}|>{{ m.content }}<|end|>\n"
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
    "{% for m in messages %}" + TURN + "{% endfor %}" + HEADER
)
"""As Qwen2.5's."""
TODAYS_DATE = (
    "{% if not day is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}"
    "<|system|>Today: {{ day }}<|end|>\n{% for m in messages %}" + TURN + "{% endfor %}" + HEADER
)
"""As Llama 3's."""
MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}" + HEADER
)
MARKED_WITH_SPACE_TAKEN_AWAY = (
    "{% for m in messages %}\n<|{{ m.role }}|>\n"
    "{%- if m.role == 'assistant' %}\n    {%- generation -%}\n{{ m.content }}<|end|>\n{%- endgeneration -%}\n"
    "{%- else %}{{ m.content }}<|end|>{% endif %}{% endfor %}" + HEADER
)
REPLY_OPENS_A_THOUGHT = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{{ '<|assistant|>' + (m.content.split('</think>') | last) }}"
    "{%- else %}{{ '<|' + m.role + '|>' + m.content }}{%- endif %}{{ '<|end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{%- endif %}"
)
"""As DeepSeek-R1's: what the header opens, the history does not have."""
LAST_THOUGHT_STAYS = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}{%- set parts = m.content.split('</think>') %}"
    "{{- '<|assistant|>' + (m.content if loop.last else (parts | last).strip()) + '<|end|>\n' }}"
    "{%- else %}{{- '<|' + m.role + '|>' + m.content + '<|end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|><think>\n' }}{%- endif %}"
)
"""As QwQ's."""
SYSTEM_BEFORE_THE_LAST_QUESTION = (
    "{%- set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{%- for m in messages if m.role != 'system' %}{%- if m.role == 'user' %}"
    "[INST] {{ system + '\n\n' if system and loop.index >= loop.length - 1 else '' }}{{ m.content }}[/INST]"
    "{%- else %} {{ m.content | trim }}</s>{%- endif %}{%- endfor %}"
)
"""As Mistral's: no header opens a reply, and an earlier question is written without the system prompt."""
OTHER_NAMES = (
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
"""As Gemma's."""
LENGTH_FIRST = "{{ messages | length }}{% for m in messages %}" + TURN + "{% endfor %}" + HEADER


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


def counted(tokenizer: Any, template: str, messages: list[dict[str, Any]]) -> list[str]:
    tokenizer.chat_template = template
    text, spans = ChatTemplate(tokenizer, None, "r").render(messages)
    return [text[start:end] for start, end in spans.values()]


SEVERAL = said("user: one", "assistant: two", "user: three", "assistant: four")
WITH_A_TOOL = said("user: one", "assistant: call", "tool: three", "assistant: four", "user: five", "assistant: six")
WITH_THOUGHTS = said(
    "user: one", "assistant: <think>\nhm\n</think>\n\ntwo", "user: three", "assistant: <think>\nah\n</think>\n\nfour"
)
TWO, FOUR = "two<|end|>", "four<|end|>"


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        (THOUGHTS_IN_THE_LAST_TURN_ONLY, SEVERAL, [TWO, "<think>\nFOUR\n</think>\n\nfour<|end|>"]),
        (THOUGHTS_SINCE_THE_LAST_QUESTION, WITH_A_TOOL, ["call<|end|>", FOUR, "<think>SIX</think>six<|end|>"]),
        (SYSTEM_PROMPT_OF_ITS_OWN, SEVERAL, [TWO, FOUR]),
        (SYSTEM_PROMPT_OF_ITS_OWN, SEVERAL[1:], [TWO, FOUR]),
        (TODAYS_DATE, SEVERAL[1:], [TWO, FOUR]),
        (MARKED, SEVERAL, [TWO, FOUR]),
        (MARKED_WITH_SPACE_TAKEN_AWAY, SEVERAL, [TWO, FOUR]),
        (REPLY_OPENS_A_THOUGHT, SEVERAL, [TWO, FOUR]),
        (REPLY_OPENS_A_THOUGHT, SEVERAL[:2], [TWO]),
        (REPLY_OPENS_A_THOUGHT, WITH_THOUGHTS, [f"\n\n{TWO}", f"\n\n{FOUR}"]),
        (LAST_THOUGHT_STAYS, SEVERAL, [TWO, FOUR]),
        (LAST_THOUGHT_STAYS, WITH_THOUGHTS, [TWO, f"ah\n</think>\n\n{FOUR}"]),
        (SYSTEM_BEFORE_THE_LAST_QUESTION, said("system: be kind") + SEVERAL, ["two</s>", " four</s>"]),
        (
            OTHER_NAMES,
            said("user: one", "assistant:  two \n", *()) + SEVERAL[2:],
            ["two<end_of_turn>", "four<end_of_turn>"],
        ),
        (LENGTH_FIRST, SEVERAL, [TWO, FOUR]),
    ],
)
def test_replies_are_found(tokenizer: Any, template: str, messages: list[dict[str, str]], expected: list[str]) -> None:
    assert counted(tokenizer, template, messages) == expected


def test_turns_that_repeat_each_other_are_told_apart(tokenizer: Any) -> None:
    turns = said("user: a", "assistant: a", "user: a", "assistant: a", "user: a")
    for template in (THOUGHTS_IN_THE_LAST_TURN_ONLY, REPLY_OPENS_A_THOUGHT):
        assert counted(tokenizer, template, turns) == ["a<|end|>"] * 2


@pytest.mark.parametrize(
    "template",
    [
        SYSTEM_PROMPT_OF_ITS_OWN.replace("{{ m.content }}", "{{ m.content }} {{ messages | length }}"),
        SYSTEM_PROMPT_OF_ITS_OWN.replace("{{ m.content }}", "{{ m.content | upper }}"),
        "{% for m in messages[-2:] %}" + TURN + "{% endfor %}",
        REPLY_OPENS_A_THOUGHT.replace("(m.content.split('</think>') | last)", "(m.content | length | string)"),
    ],
    ids=["length within", "other words", "last turns alone", "no words"],
)
def test_a_template_whose_replies_are_not_what_was_said_is_refused(tokenizer: Any, template: str) -> None:
    with pytest.raises(
        UsageError, match=r"r: the chat template of .*tiny-qwen2 .* turn 2 cannot be located; .* fix the"
    ):
        counted(tokenizer, template, SEVERAL)


def test_tool_calls_count_whether_or_not_they_have_words(tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{% if m.tool_calls %}<|assistant|>"
        "{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}<|end|>\n{% else %}" + TURN + "{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
    )
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"x": 1}}}]}
    turns = [*SEVERAL[:1], call, {"role": "tool", "content": "3"}, *SEVERAL[1:]]
    written = '{"name": "add", "arguments": {"x": 1}}<|end|>'
    assert counted(tokenizer, template, turns) == [written, TWO, FOUR]
    assert counted(tokenizer, template.replace("<think>\n", ""), turns) == [written, TWO, FOUR]


def test_text_is_the_same_on_every_day(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on after midnight finds its corpus again."""
    import transformers.utils.chat_template_utils as templates

    tokenizer.chat_template = TODAYS_DATE
    texts = set()
    for day in (1, 2):
        monkeypatch.setattr(templates, "datetime", SimpleNamespace(now=lambda day=day: datetime(2031, 5, day)))
        texts.add(ChatTemplate(tokenizer, None, "r").render(SEVERAL)[0])
    assert len(texts) == 1
    assert chat_template.TODAY.strftime("%d %b %Y") in texts.pop()
