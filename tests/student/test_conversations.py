import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from arwkv_store.errors import NotFound, UsageError
from arwkv_student.data.conversations import IGNORED, examples, pairs, read_records

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_teacher: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def write(tmp_path: Path, *records: object) -> Path:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def test_only_assistant_turns_count_to_their_end(tmp_path: Path, tokenizer: Any) -> None:
    messages = turns("import os", "def f():", "again", "return 1")
    (example,) = examples(read_records(write(tmp_path, {"messages": messages})), tokenizer, 512)
    assert tokenizer.decode(example.input_ids) == tokenizer.apply_chat_template(messages, tokenize=False)
    counted = [label for label in example.labels if label != IGNORED]
    assert tokenizer.decode(counted) == "def f():<|endoftext|>return 1<|endoftext|>"
    assert all(label in (IGNORED, i) for i, label in zip(example.input_ids, example.labels, strict=True))


def test_greeting_that_answers_nothing_does_not_count(tmp_path: Path, tokenizer: Any) -> None:
    """Nor do the header and the system prompt that the template puts before it."""
    tokenizer.chat_template = "{% if messages[0].role != 'system' %}<system>Be kind.\n{% endif %}" + TEMPLATE
    greeting = {"role": "assistant", "content": "hello"}
    (example,) = examples(
        read_records(write(tmp_path, {"messages": [greeting, *turns("import os", "yes")]}, {"messages": [greeting]})),
        tokenizer,
        512,
    )
    assert "Be kind" in tokenizer.decode(example.input_ids)
    assert tokenizer.decode([label for label in example.labels if label != IGNORED]) == "yes<|endoftext|>"


def test_prompt_is_tokenized_as_it_is_when_asked(tmp_path: Path, tokenizer: Any) -> None:
    records = [{"prompt": "import o", "completion": "s"}, {"prompt": turns("a"), "completion": turns("", "b")[1:]}]
    plain, chat = examples(read_records(write(tmp_path, *records)), tokenizer, 512)
    asked = tokenizer("import o")["input_ids"]
    assert plain.input_ids[: len(asked)] == asked
    assert tokenizer.decode([i for i in plain.labels if i != IGNORED]) == "s<|endoftext|>"
    assert tokenizer.decode([i for i in chat.labels if i != IGNORED]) == "b<|endoftext|>"


def test_long_conversations_are_cut_and_dropped_without_a_reply(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path, {"messages": turns("import os " * 40, "x")}, {"messages": turns("a", "return " * 40)})
    (kept,) = examples(read_records(file), tokenizer, 32)
    assert len(kept.input_ids) == len(kept.labels) == 32


def test_preferences_split_where_the_replies_begin(tmp_path: Path, tokenizer: Any) -> None:
    asked, good, bad = turns("import os"), turns("", "yes")[1:], turns("", "no")[1:]
    explicit = {"prompt": asked, "chosen": good, "rejected": bad}
    implicit = {"chosen": asked + good, "rejected": asked + bad}
    plain = {"prompt": "import os", "chosen": " yes", "rejected": " no"}
    first, second, third = pairs(read_records(write(tmp_path, explicit, implicit, plain)), tokenizer, 512)
    assert first == second
    assert tokenizer.decode(first.prompt_ids) == "<user>import os<|endoftext|>\n<assistant>"
    assert tokenizer.decode(first.chosen_ids) == "yes<|endoftext|>"
    assert tokenizer.decode(third.prompt_ids + third.rejected_ids) == "import os no<|endoftext|>"
    assert not list(pairs(read_records(write(tmp_path, plain)), tokenizer, len(third.prompt_ids)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"data\.jsonl:2: not JSON"),
        ("[1]", r"data\.jsonl:2: list, not a JSON object"),
        ('{"text": "x"}', r"data\.jsonl:2: neither `messages` nor `prompt` and `completion` .it has: text"),
        ('{"messages": "hi"}', r"data\.jsonl:2: field 'messages' is not a list"),
        ('{"prompt": "a", "completion": 3}', r"data\.jsonl:2: `completion` is int, not text"),
    ],
)
def test_what_is_no_conversation_is_refused_by_line(line: str, message: str, tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path, {"prompt": "a", "completion": "b"})
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(UsageError, match=message):
        list(examples(read_records(file), tokenizer, 64))


def test_what_is_no_preference_is_refused_by_line(tmp_path: Path, tokenizer: Any) -> None:
    for record, message in (
        ({"prompt": "a", "chosen": "b"}, "no `rejected`"),
        ({"chosen": "a", "rejected": "b"}, "no `prompt`"),
        ({"chosen": turns("a"), "rejected": turns("b")}, "share no first turn"),
    ):
        with pytest.raises(UsageError, match=message):
            list(pairs(read_records(write(tmp_path, record)), tokenizer, 64))


def test_templates_that_cannot_be_used_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path, {"messages": turns("a", "b", "c", "d")})
    for template, message in (
        (None, "no chat template"),
        ("{{ raise_exception('no') }}", "the chat template refuses it"),
        ("{% for m in messages[-2:] %}<{{ m.role }}>{{ m.content }}{% endfor %}", "rewrites earlier turns"),
    ):
        tokenizer.chat_template = template
        with pytest.raises(UsageError, match=message):
            list(examples(read_records(file), tokenizer, 64))
    with pytest.raises(NotFound, match="name a JSONL file"):
        list(read_records(tmp_path / "nowhere.jsonl"))
