"""What people have on their disks is read, or refused by name: odd bytes, compressed files, folders with other things
in them, saved data sets, object stores."""

import bz2
import gzip
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from arwkv_producer.text.conversations import Document, plain_documents
from arwkv_producer.text.reading import read_records
from arwkv_producer.text.sources import find_shares, find_sources
from arwkv_store.errors import NotFound, UsageError

LINES = '{"text": "river stone"}\n{"text": "window"}\n'
TEXTS = ["river stone", "window"]


def read(name: object, split: str = "train") -> list[str]:
    return [document.text for document in documents(name, split)]


def documents(name: object, split: str = "train") -> list[Document]:
    return list(plain_documents(read_records(find_sources([str(name)], split).sources, "text"), "text"))


def passed_over(name: object, split: str = "train") -> dict[str, str]:
    return {passed.name: passed.reason for passed in find_sources([str(name)], split).passed_over}


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "A.NDJSON"])
def test_compressed_files_are_read_whole_or_refused(tmp_path: Path, name: str, suffix: str) -> None:
    compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(suffix)
    halves = LINES.splitlines(keepends=True)
    packed = [compress(half.encode()) if compress else zstandard.compress(half.encode()) for half in halves]
    path = tmp_path / (name + suffix)
    path.write_bytes(b"".join(packed))
    assert read(path) == TEXTS, "also where several streams follow one another"
    path.write_bytes(packed[0] + packed[1][:-6])
    with pytest.raises(UsageError, match=f"{name}{suffix}: .*; fetch the file again"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
        ("crlf.jsonl", LINES.replace("\n", "\r\n").encode()),
        ("bom.json", b"\xef\xbb\xbf" + json.dumps([{"text": text} for text in TEXTS], indent=1).encode()),
        ("bom.csv", b"\xef\xbb\xbftext,other\r\nriver stone,1\r\nwindow,2\r\n"),
        ("bom.tsv", b"\xef\xbb\xbftext\tother\nriver stone\t1\nwindow\t2\n"),
    ],
)
def test_byte_order_marks_and_line_ends_are_no_text(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == TEXTS


def test_a_text_file_has_neither(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfriver\r\nstone\r\n")
    assert read(tmp_path / "a.txt") == ["river\nstone\n"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            LINES.encode() + rb'{"text": "half \ud83d a smile"}',
            r"a.jsonl:3: '\\ud83d' at character 5 is not a character",
        ),
        ("a.jsonl", b'{"text": "a", "x": ' + b"[" * 100_000, "a.jsonl:1: not JSON .*recursion"),
        ("a.json", b"[" * 100_000, "a.json: not JSON .*recursion"),
        ("a.jsonl", LINES.encode() + b'{"text": "caf\xe9"}', "a.jsonl:3: not UTF-8 at byte 13 of the line"),
        ("a.csv", b"text\ncaf\xe9\n", "a.csv:2: not UTF-8 at byte 3 of the line"),
        ("a.jsonl", LINES.encode("utf-16"), "a.jsonl:1: not UTF-8 at byte 0"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a.parquet: a Git LFS pointer"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a.jsonl: a Git LFS pointer"),
        ("a.parquet", b"PAR1 and no more", "a.parquet: not readable"),
        ("a.arrow", b"nothing", "a.arrow: not readable"),
        ("a.jsonl", b'{"messages": []}', "a.jsonl:1: no field 'text' .*; read conversations with --chat"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message) as raised:
        read(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_of_a_folder_the_data_is_read_and_the_rest_is_said(tmp_path: Path) -> None:
    for name in (".cache/old.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "__MACOSX/a.jsonl", "data/deep/a.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(LINES)
    (tmp_path / "data" / "._a.jsonl").write_bytes(b"\0\5\x16\7Mac OS X")
    (tmp_path / "README.md").write_text("How to cite this.")
    (tmp_path / "LICENSE.txt").write_text("MIT")
    (tmp_path / "make.py").write_text("pass")
    (tmp_path / "notes.txt").write_text("letter")
    assert read(tmp_path) == [*TEXTS, "letter"]
    assert passed_over(tmp_path) == {
        **dict.fromkeys((".cache", ".ipynb_checkpoints", "__MACOSX", "data/._a.jsonl"), "hidden"),
        **dict.fromkeys(("LICENSE.txt", "README.md"), "documentation"),
        "make.py": ".py: not a supported kind of file",
    }
    assert passed_over(tmp_path / "*.*").keys() == {"LICENSE.txt", "README.md", "make.py"}
    (share,) = find_shares([str(tmp_path)], "train")
    assert len(share.passed_over) == 7
    assert read(tmp_path / "README.md") == ["How to cite this."], "a file that is named is meant"


def test_pieces_of_other_splits_are_passed_over(tmp_path: Path) -> None:
    for split, texts in (("train", TEXTS), ("test", ["held out"])):
        pyarrow.parquet.write_table(pa.table({"text": texts}), tmp_path / f"{split}-00000-of-00001.parquet")
    assert read(tmp_path) == TEXTS
    assert passed_over(tmp_path) == {"test-00000-of-00001.parquet": "another split than --split train"}
    assert read(tmp_path, "test") == ["held out"]
    assert len(read(tmp_path, "validation")) == 3, "of no split that is named so, nothing is left out"


def test_a_saved_data_set_is_read_as_one(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    saved, held_out = Dataset.from_dict({"text": TEXTS}), Dataset.from_dict({"text": ["held out"]})
    saved.save_to_disk(tmp_path / "one", num_shards=2)
    (tmp_path / "one" / "cache-1234.arrow").write_bytes(b"old")
    DatasetDict({"train": saved, "test": held_out}).save_to_disk(tmp_path / "two")
    assert read(tmp_path / "one") == read(tmp_path / "two") == TEXTS
    assert passed_over(tmp_path / "one") == {"cache-1234.arrow": "a cache"}
    assert passed_over(tmp_path / "two") == {"test": "another split than --split train"}
    assert read(tmp_path / "two", "test") == ["held out"]
    with pytest.raises(NotFound, match="--split dev: it was saved with the splits test, train"):
        read(tmp_path / "two", "dev")


@pytest.fixture
def bucket() -> Iterator[str]:
    """An object store in this process's memory, which fsspec reads as it does others."""
    store = fsspec.filesystem("memory")
    store.pipe("/corpus/a.jsonl", LINES.encode())
    store.pipe("/corpus/b.jsonl.zst", zstandard.compress(b'{"text": "letter"}'))
    store.pipe("/corpus/README.md", b"How to cite this.")
    yield "memory://corpus"
    store.rm("/corpus", recursive=True)


def test_object_stores_are_read_like_folders(bucket: str) -> None:
    assert read(bucket) == [*TEXTS, "letter"]
    assert passed_over(bucket) == {"README.md": "documentation"}
    assert [document.source for document in documents(f"{bucket}/a.jsonl")] == ["a.jsonl:1", "a.jsonl:2"]
    assert read(f"{bucket}/*.zst") == ["letter"]
    assert find_shares([f"{bucket}/a.jsonl:0.5"], "train")[0].weight == 0.5
    with pytest.raises(NotFound, match=r"--data memory://corpus/c.jsonl: no such file"):
        read(f"{bucket}/c.jsonl")
    with pytest.raises(UsageError, match="nowhere://x"):
        read("nowhere://x/a.jsonl")
