"""Text in, samples out: nothing lost unseen, masks where they belong, held-out documents chosen by their text."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from arwkv_producer.conversations import Document, chat_documents, plain_documents
from arwkv_producer.corpus import Corpus, tokenise
from arwkv_producer.documents import HubDataset, Record, find_sources, read_records
from arwkv_store.errors import NotFound, UsageError

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] or '' }}"
    "{% for c in m.get('tool_calls') or [] %}[{{ c['function']['name'] }}]{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_teacher: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def documents(*texts: str) -> list[Document]:
    return [Document(text, f"d{number}") for number, text in enumerate(texts)]


def counted_text(corpus: Corpus, tokenizer: Any) -> list[str]:
    """What each run of counted tokens says."""
    runs: list[list[int]] = [[]]
    for token, counts in zip(corpus.tokens, corpus.loss_mask, strict=True):
        if counts:
            runs[-1].append(int(token))
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


def test_long_documents_are_cut_and_no_token_is_lost(tokenizer: Any) -> None:
    texts = ("def one(): return 1\n" * 40, "", "x = 2\n")
    corpus, held_out = tokenise(documents(*texts), tokenizer, 16)
    whole = [token for text in texts for token in tokenizer(text)["input_ids"]]
    assert corpus.tokens.tolist() == whole
    assert np.diff(corpus.starts).max() == 16
    assert (corpus.report.documents, corpus.report.documents_cut, corpus.report.documents_empty) == (3, 1, 1)
    assert corpus.sources[:2] == ["d0", "d0+16"]
    assert len(held_out) == 0


def test_duplicates_are_left_out_and_counted(tokenizer: Any) -> None:
    corpus, _ = tokenise(documents("a = 1", "b = 2", "a = 1"), tokenizer, 64, keep_duplicates=False)
    assert (len(corpus), corpus.report.documents_duplicate) == (2, 1)


def test_held_out_documents_depend_on_their_text_alone(tokenizer: Any) -> None:
    texts = [f"value_{number} = {number}" for number in range(300)]
    kept, apart = tokenise(documents(*texts), tokenizer, 64, held_out=0.2)
    assert len(kept) + len(apart) == 300
    assert 30 <= len(apart) <= 90
    _, apart_reversed = tokenise(documents(*reversed(texts)), tokenizer, 64, held_out=0.2)
    first, second = ({tuple(c.sample_tokens(i)) for i in range(len(c))} for c in (apart, apart_reversed))
    assert first == second


def test_chat_counts_assistant_turns_only(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "one plus one"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add"}}]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "two"},
    ]
    records = [Record({"messages": messages}, "r", "r")]
    corpus, _ = tokenise(chat_documents(records, "messages", tokenizer), tokenizer, 512, special_tokens=False)
    assert tokenizer.decode(corpus.tokens).startswith("<|system|>be kind<|end|><|user|>")
    counted = counted_text(corpus, tokenizer)
    assert len(counted) == 2
    assert "[add]<|end|>" in counted[0]
    assert "two<|end|>" in counted[1]
    assert "kind" not in "".join(counted)
    assert "one plus" not in "".join(counted)


def test_prompt_and_completion_count_the_completion(tokenizer: Any) -> None:
    records = [Record({"prompt": "def f():\n", "completion": "    return 3"}, "r", "r")]
    corpus, _ = tokenise(plain_documents(records, "text"), tokenizer, 64)
    (counted,) = counted_text(corpus, tokenizer)
    assert counted.endswith("return 3")
    assert "def" not in counted


def test_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any) -> None:
    messages = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    original = tokenizer.chat_template
    tokenizer.chat_template = "{{ messages | length }}" + original
    try:
        with pytest.raises(UsageError, match="rewrites earlier turns"):
            list(chat_documents([Record({"messages": messages}, "r", "r")], "messages", tokenizer))
    finally:
        tokenizer.chat_template = original


@pytest.mark.parametrize("value", ["hello", [{"content": "no role"}], [3]])
def test_messages_of_another_shape_are_refused(tokenizer: Any, value: Any) -> None:
    with pytest.raises(UsageError, match=r"r: field 'messages' is no list"):
        list(chat_documents([Record({"messages": value}, "r", "r")], "messages", tokenizer))


def test_every_format_gives_the_same_texts(tmp_path: Path) -> None:
    texts = ["one\ntwo", "drei, vier"]
    table = pa.table({"text": texts})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "t.csv")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for name in ("t.parquet", "t.csv", "t.jsonl"):
        found = list(plain_documents(read_records(find_sources([str(tmp_path / name)], "train"), "text"), "text"))
        assert [document.text for document in found] == texts
        assert found[1].source == f"{name}:2"


def test_folders_and_globs_are_read_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.py"):
        (tmp_path / name).write_text(name)
    for asked in (str(tmp_path), str(tmp_path / "*.txt")):
        assert [source.name for source in find_sources([asked], "train")] == ["a.txt", "b.txt"]


def test_names_that_are_no_files_are_hub_datasets_unless_they_look_like_files() -> None:
    assert find_sources(["org/name"], "test") == [HubDataset("org/name", "test")]
    with pytest.raises(NotFound, match="no such file"):
        find_sources(["corpus.jsonl"], "train")


def test_hub_dataset_that_cannot_be_had_is_named() -> None:
    with pytest.raises(NotFound, match="--data nobody/nothing --split train"):
        list(read_records([HubDataset("nobody/nothing", "train")], "text"))
