"""Notes beside the data: no writer's words are lost, no fingerprint changes, and what others do leaves them alone."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from arwkv_store import NotFound, UsageError, open_dataset
from arwkv_store.commands.copy import copy_dataset
from arwkv_store.commands.noting import noted
from arwkv_store.commands.removing import collect_garbage, remove_dataset
from arwkv_store.commands.verify import verify_dataset
from arwkv_store.dataset.notes_file import notes_file
from arwkv_store.errors import UnsupportedVersion
from arwkv_store.format.layout import NOTES_FILE
from arwkv_store.format.notes import MAX_CHARACTERS, MAX_NOTES_BYTES, MAX_TAGS, Notes
from store_examples import write_example_dataset
from store_server import served

WRITERS, WORDS = 4, 5


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARWKV_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset."""
    write_example_dataset(tmp_path / "data", parts=[0])
    return tmp_path / "data"


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, folder: Path) -> str:
    """The dataset's URI, in each kind of place."""
    if request.param == "folder":
        return str(folder)
    bucket = request.getfixturevalue("s3_bucket")
    list(copy_dataset(str(folder), f"{bucket}/data"))
    return f"{bucket}/data"


def test_text_and_tags_are_changed_each_for_itself(place: str) -> None:
    assert noted(place, None, (), ()) == Notes()
    noted(place, "first \u05e9\u05dc\u05d5\u05dd", ("b", "a", "a"), ())
    notes = noted(place, None, ("c",), ("a", "never-there"))
    assert (notes.text, notes.tags) == ("first \u05e9\u05dc\u05d5\u05dd", ("b", "c"))
    assert noted(place, None, (), ()) == notes
    assert noted(place, "", (), ("b", "c")).changed_at_s
    assert (noted(place, None, (), ()).text, noted(place, None, (), ()).tags) == ("", ())


def test_no_word_of_many_writers_is_lost(place: str) -> None:
    def write(writer: int) -> None:
        for word in range(WORDS):
            noted(place, None, (f"w{writer}-{word}",), ())

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {f"w{writer}-{word}" for writer in range(WRITERS) for word in range(WORDS)}
    assert set(noted(place, None, (), ()).tags) == expected


WRITING = """
import itertools, sys
from arwkv_store.commands.noting import noted
for number in itertools.count(int(sys.argv[2])):
    noted(sys.argv[1], str(number), (), ())
    print(number, flush=True)
"""


@pytest.mark.slow
@pytest.mark.crash
def test_killed_writers_leave_whole_notes_and_no_lock(folder: Path) -> None:
    """A writer is killed at some moment, 100 times: its last acknowledged words are there, or those it wrote next."""
    number = 0
    for kill in range(100):
        process = subprocess.Popen([sys.executable, "-c", WRITING, str(folder), str(number)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.002 * (kill % 20))
        process.send_signal(signal.SIGKILL)
        said = process.communicate()[0].split()
        acknowledged = int(said[-1]) if said else number
        found = int(noted(str(folder), None, (), ()).text)
        assert acknowledged <= found <= acknowledged + 1
        number = found + 1
    assert number > 120


def test_change_that_is_refused_writes_nothing(place: str) -> None:
    noted(place, "mine", (), ())

    def refuse(raw: bytes) -> Notes:
        raise UsageError(f"seen {len(raw)}")

    with pytest.raises(UsageError, match="seen"):
        notes_file(place).change(refuse)
    assert noted(place, None, (), ()).text == "mine"


def test_notes_change_no_identity_and_go_with_the_data(folder: Path, tmp_path: Path) -> None:
    before = (folder / "dataset.json").read_bytes()
    noted(str(folder), "kept", ("a",), ())
    assert (folder / "dataset.json").read_bytes() == before
    assert len(open_dataset(folder)) == 4
    *_, verdict = verify_dataset(str(folder), deep=True)
    assert (verdict.damaged, verdict.unclaimed) == ({}, [])
    assert collect_garbage(str(folder), 0.0, yes=True, quiet=True)["files"] == []
    list(copy_dataset(str(folder), str(tmp_path / "copy")))
    with served(folder) as service:
        list(copy_dataset(service.uri, str(tmp_path / "downloaded")))
    for copy in ("copy", "downloaded"):
        assert noted(str(tmp_path / copy), None, (), ()) == noted(str(folder), None, (), ())
    noted(str(tmp_path / "copy"), "the copy's own", (), ())
    list(copy_dataset(str(folder), str(tmp_path / "copy")))
    assert noted(str(tmp_path / "copy"), None, (), ()).text == "the copy's own"
    remove_dataset(str(folder), yes=True, quiet=True)
    assert not folder.exists()


def test_notes_go_into_a_bucket_and_back(folder: Path, tmp_path: Path, s3_bucket: str) -> None:
    noted(str(folder), "kept", ("a",), ())
    list(copy_dataset(str(folder), f"{s3_bucket}/one"))
    list(copy_dataset(f"{s3_bucket}/one", str(tmp_path / "back")))
    assert (tmp_path / "back" / NOTES_FILE).read_bytes() == (folder / NOTES_FILE).read_bytes()


def test_run_has_notes_and_another_folder_has_none(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(NotFound, match=r"no dataset\.json or metrics\.jsonl"):
        noted(str(tmp_path / "run"), "x", (), ())
    (tmp_path / "run" / "metrics.jsonl").touch()
    noted(str(tmp_path / "run"), "x", (), ())
    assert json.loads((tmp_path / "run" / NOTES_FILE).read_text())["text"] == "x"
    for uri in ("hf://datasets/a/b", "http://localhost/v1/datasets/a"):
        with pytest.raises(UsageError, match=r"PUT|copy"):
            noted(uri, "x", (), ())


@pytest.mark.parametrize("text", ["\0", "\x1b[2J", "\x9b", "a\r", "\ud800", "x" * (MAX_CHARACTERS + 1)])
def test_text_that_notes_cannot_have_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(UsageError, match="at most"):
        noted(str(folder), text, (), ())
    assert not (folder / NOTES_FILE).exists()


@pytest.mark.parametrize("tag", ["", "A", "a b", "-a", "a\n", "<b>", "\u05d0", "a" * 41])
def test_tag_that_notes_cannot_have_is_refused(folder: Path, tag: str) -> None:
    with pytest.raises(UsageError, match="tags"):
        noted(str(folder), None, (tag,), ())
    with pytest.raises(UsageError, match="at most 32 tags"):
        noted(str(folder), None, [f"t{number}" for number in range(MAX_TAGS + 1)], ())


FOREIGN = [b"[]", b"not json", b'{"format_version": 2}', b'{"text": "\\u0000"}', b"[" * 60_000, b'{"tags": ["A"]}',
           b" " * (MAX_NOTES_BYTES + 1), b'{"changed_at_s": 1e300}']  # fmt: skip


@pytest.mark.parametrize("raw", FOREIGN, ids=range(len(FOREIGN)))
def test_file_that_is_no_notes_is_named_and_not_replaced(folder: Path, raw: bytes) -> None:
    (folder / NOTES_FILE).write_bytes(raw)
    for text in (None, "new"):
        with pytest.raises(UnsupportedVersion, match=r"notes\.json: not notes of format version 1"):
            noted(str(folder), text, (), ())
    assert (folder / NOTES_FILE).read_bytes() == raw


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_no_link_is_followed_and_no_pipe_waited_for(folder: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret").write_text('{"text": "secret"}')
    path = folder / NOTES_FILE
    {"link": lambda: path.symlink_to(tmp_path / "secret"), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[
        kind
    ]()
    with pytest.raises(UnsupportedVersion):
        noted(str(folder), "new", (), ())
    assert (tmp_path / "secret").read_text() == '{"text": "secret"}'


def test_notes_may_be_written_by_hand(folder: Path) -> None:
    (folder / NOTES_FILE).write_text('{"text": "by hand", "colour": "blue"}')
    assert noted(str(folder), None, ("a",), ()).text == "by hand"
