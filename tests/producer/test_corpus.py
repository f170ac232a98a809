"""Text in, samples out: nothing lost unseen, masks where they belong, held-out documents chosen by their text."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from arwkv_producer.cli import gathered
from arwkv_producer.text.conversations import Document, chat_documents, plain_documents
from arwkv_producer.text.corpus import Corpus, tokenize
from arwkv_producer.text.reading import read_records
from arwkv_producer.text.records import Record
from arwkv_producer.text.sources import DataFile, HubDataset, find_shares, find_sources
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


def read(name: Path) -> list[Document]:
    """The plain documents of a file or folder."""
    return list(plain_documents(read_records(find_sources([str(name)], "train").sources, "text"), "text"))


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
    corpus, held_out = tokenize([documents(*texts)], tokenizer, 16)
    whole = [token for text in texts for token in tokenizer(text)["input_ids"]]
    assert corpus.tokens.tolist() == whole
    assert np.diff(corpus.starts).max() == 16
    assert (corpus.report.documents, corpus.report.documents_cut, corpus.report.documents_empty) == (3, 1, 1)
    assert corpus.sources[:2] == ["d0", "d0+16"]
    assert len(held_out) == 0


def test_duplicates_are_left_out_and_counted(tokenizer: Any) -> None:
    corpus, _ = tokenize([documents("a = 1", "b = 2", "a = 1")], tokenizer, 64, keep_duplicates=False)
    assert (len(corpus), corpus.report.documents_duplicate) == (2, 1)


def test_held_out_documents_depend_on_their_text_alone(tokenizer: Any) -> None:
    texts = [f"value_{number} = {number}" for number in range(300)]
    kept, apart = tokenize([documents(*texts)], tokenizer, 64, held_out=0.2)
    assert len(kept) + len(apart) == 300
    assert 30 <= len(apart) <= 90
    _, apart_reversed = tokenize([documents(*reversed(texts))], tokenizer, 64, held_out=0.2)
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
    corpus, _ = tokenize([chat_documents(records, "messages", tokenizer)], tokenizer, 512, special_tokens=False)
    assert tokenizer.decode(corpus.tokens).startswith("<|system|>be kind<|end|><|user|>")
    counted = counted_text(corpus, tokenizer)
    assert len(counted) == 2
    assert "[add]<|end|>" in counted[0]
    assert "two<|end|>" in counted[1]
    assert "kind" not in "".join(counted)
    assert "one plus" not in "".join(counted)


def test_prompt_and_completion_count_the_completion(tokenizer: Any) -> None:
    records = [Record({"prompt": "def f():\n", "completion": "    return 3"}, "r", "r")]
    corpus, _ = tokenize([plain_documents(records, "text")], tokenizer, 64)
    (counted,) = counted_text(corpus, tokenizer)
    assert counted.endswith("return 3")
    assert "def" not in counted


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "2 + 2 = ", "chosen": "4", "rejected": "5 # no"},
        {"chosen": "2 + 2 = 4", "rejected": "2 + 2 = 5 # no"},
    ],
    ids=["prompt apart", "prompt within"],
)
def test_preference_pair_makes_two_samples_whose_answers_count(tokenizer: Any, fields: dict[str, str]) -> None:
    records = [Record(fields, "p.jsonl:1", "p.jsonl:1")]
    corpus, _ = tokenize([plain_documents(records, "text")], tokenizer, 64)
    assert corpus.sources == ["p.jsonl:1/chosen", "p.jsonl:1/rejected"]
    assert [tokenizer.decode(corpus.sample_tokens(i)) for i in (0, 1)] == ["2 + 2 = 4", "2 + 2 = 5 # no"]
    counted = [tokenizer.decode(corpus.sample_tokens(i)[corpus.sample_mask(i)]).strip() for i in (0, 1)]
    assert counted == ["4", "5 # no"]


@pytest.mark.parametrize("prompt_apart", [True, False])
def test_preference_pair_of_conversations_counts_the_answers_turns(tokenizer: Any, prompt_apart: bool) -> None:
    prompt = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    good, bad = ([{"role": "assistant", "content": word}] for word in ("good", "bad"))
    fields = {"chosen": good, "rejected": bad, "prompt": prompt}
    if not prompt_apart:
        fields = {"chosen": prompt + good, "rejected": prompt + bad}
    records = [Record(fields, "r", "r")]
    corpus, _ = tokenize([chat_documents(records, "messages", tokenizer)], tokenizer, 512, special_tokens=False)
    assert corpus.sources == ["r/chosen", "r/rejected"]
    for index, word in enumerate(("good", "bad")):
        counted = tokenizer.decode(corpus.sample_tokens(index)[corpus.sample_mask(index)])
        assert f"{word}<|end|>" in counted
        assert "user" not in counted
        assert counted.count("<|end|>") == 1


def test_pairs_are_kept_held_out_and_left_out_whole(tokenizer: Any) -> None:
    pairs = [{"prompt": f"{number} is ", "chosen": "even", "rejected": "odd"} for number in range(100)]
    # The same chosen text with another rejected one is another pair; the very same pair is a duplicate.
    more = [{"prompt": "0 is ", "chosen": "even", "rejected": "prime"}, pairs[5]]
    records = [Record(pair, f"r{number}", "r") for number, pair in enumerate([*pairs, *more])]
    kept, apart = tokenize([plain_documents(records, "text")], tokenizer, 64, keep_duplicates=False, held_out=0.3)
    assert kept.report.documents_duplicate + apart.report.documents_duplicate == 2
    assert len(kept) + len(apart) == 202
    for corpus in (kept, apart):
        assert len(corpus) > 20
        halves = [source.split("/") for source in corpus.sources]
        assert [half for _, half in halves] == ["chosen", "rejected"] * (len(corpus) // 2)
        assert [number for number, _ in halves[::2]] == [number for number, _ in halves[1::2]]


def test_sources_give_tokens_in_proportion_to_their_weights(tokenizer: Any) -> None:
    sources = [documents(*(f"{name}{number} = {number}" for number in range(2000))) for name in "ab"]
    marked = [[replace(document, source=name) for document in some] for name, some in zip("ab", sources, strict=True)]
    corpus, _ = tokenize(marked, tokenizer, 64, weights=[3, 1])
    sizes = dict.fromkeys("ab", 0)
    for index, source in enumerate(corpus.sources):
        sizes[source] += len(corpus.sample_tokens(index))
        if index > 100:
            assert abs(sizes["a"] / sum(sizes.values()) - 0.75) < 0.01, "at any point, not only at the end"
    assert corpus.sources.count("a") == 2000
    assert corpus.report.documents_beyond_share == 2000 - corpus.sources.count("b")
    again, _ = tokenize(marked, tokenizer, 64, weights=[3, 1])
    assert again.fingerprint() == corpus.fingerprint()


def test_weights_are_read_from_the_names(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "odd:3"):
        (tmp_path / name).write_text("x")
    one, other = find_shares([f"{tmp_path}/a.txt:0.7", f"{tmp_path}/b.txt:.3"], "train")
    assert (one.sources, one.weight, other.weight) == ([DataFile(f"{tmp_path}/a.txt")], 0.7, 0.3)
    (together,) = find_shares([f"{tmp_path}/a.txt", f"{tmp_path}/b.txt"], "train")
    assert len(together.sources) == 2
    with pytest.raises(UsageError, match=r"b.txt: no weight, but other sources have one"):
        find_shares([f"{tmp_path}/a.txt:1", f"{tmp_path}/b.txt"], "train")
    with pytest.raises(UsageError, match="a weight must be above 0"):
        find_shares([f"{tmp_path}/a.txt:0"], "train")
    with pytest.raises(UsageError, match="unknown kind of file"):
        find_shares([f"{tmp_path}/odd:3"], "train")


@pytest.mark.parametrize(
    "words", ["--data a b --top-k 3", "--data a --top-k 3 --data b", "--data=a --top-k 3 --data=b"]
)
def test_data_said_twice_is_said_once(words: str) -> None:
    assert gathered(["generate", *words.split()], "--data") == ["generate", "--top-k", "3", "--data", "a", "b"]
    assert gathered(["plan", "--top-k", "3"], "--data") == ["plan", "--top-k", "3"]


@pytest.mark.parametrize("value", ["hello", [{"content": "no role"}], [3]])
def test_messages_of_another_shape_are_refused(tokenizer: Any, value: Any) -> None:
    with pytest.raises(UsageError, match=r"r: field 'messages' is not a list"):
        list(chat_documents([Record({"messages": value}, "r", "r")], "messages", tokenizer))


def test_every_format_gives_the_same_texts(tmp_path: Path) -> None:
    texts = ["one\ntwo", "drei, vier"]
    table = pa.table({"text": texts})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "t.csv")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "t.json").write_text(json.dumps([{"text": text} for text in texts]))
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    for name in ("t.parquet", "t.csv", "t.jsonl", "t.json", "t.arrow"):
        found = read(tmp_path / name)
        assert [document.text for document in found] == texts
        assert found[1].source == f"{name}:2"


def test_compressed_files_are_read(tmp_path: Path) -> None:
    texts = ["one\ntwo", "drei, vier"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    contents = {"t.jsonl.gz": lines, "t.json.gz": json.dumps([{"text": text} for text in texts]), "t.txt.gz": texts[0]}
    for name, content in contents.items():
        with gzip.open(tmp_path / name, "wt", encoding="utf-8") as file:
            file.write(content)
        found = read(tmp_path / name)
        assert [document.text for document in found] == texts[: len(found)]
    assert len(find_sources([str(tmp_path)], "train").sources) == len(contents)
    (tmp_path / "t.jsonl.gz").write_bytes((tmp_path / "t.jsonl.gz").read_bytes()[:-9])
    with pytest.raises(UsageError, match=r"t.jsonl.gz: ends too early .*; fetch the file again"):
        list(read_records([DataFile(f"{tmp_path}/t.jsonl.gz")], "text"))


def test_null_rows_are_left_out_and_counted(tokenizer: Any) -> None:
    records = [Record({"text": text, "messages": None}, "r", "r") for text in ("a = 1", None, None, "")]
    corpus, _ = tokenize([plain_documents(records, "text")], tokenizer, 64, keep_duplicates=False)
    assert (len(corpus), corpus.report.documents_empty, corpus.report.documents_duplicate) == (1, 3, 0)
    corpus, _ = tokenize([chat_documents(records, "messages", tokenizer)], tokenizer, 64)
    assert (len(corpus), corpus.report.documents_empty) == (0, 4)


def test_folders_and_globs_are_read_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.py"):
        (tmp_path / name).write_text(name)
    for asked in (str(tmp_path), str(tmp_path / "*.txt")):
        assert [source.label for source in find_sources([asked], "train").sources] == ["a.txt", "b.txt"]


def test_names_that_are_no_files_are_hub_datasets_unless_they_look_like_files() -> None:
    assert find_sources(["org/name"], "test").sources == [HubDataset("org/name", "test")]
    assert find_sources(["org/name:2023.en"], "test").sources == [HubDataset("org/name", "test", "2023.en")]
    (share,) = find_shares(["org/name:en:0.5"], "test")
    assert (share.sources, share.weight) == ([HubDataset("org/name", "test", "en")], 0.5)
    with pytest.raises(NotFound, match="no such file"):
        find_sources(["corpus.jsonl"], "train")


def test_hub_dataset_that_cannot_be_had_is_named() -> None:
    with pytest.raises(NotFound, match="--data nobody/nothing --split train"):
        list(read_records([HubDataset("nobody/nothing", "train")], "text"))
