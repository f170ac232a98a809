"""A file of answers: in order, whole lines after a stop, one writer, and a name only once it is complete."""

import json
from pathlib import Path

import pytest

from arwkv_store.errors import ConfigurationDiffers, TryAgain, UsageError
from arwkv_store.places.answer_file import answer_file, origin_of, written_by

ORIGIN = {"written_by": "abc", "seed": 0}


def test_file_has_its_name_only_once_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.jsonl"
    with answer_file(path, ORIGIN) as file:
        file.add([{"text": "ä"}, {"text": "b"}])
        assert (file.lines, path.exists()) == (2, False)
    with answer_file(path, ORIGIN) as file:
        assert file.lines == 2
        file.add([{"text": "c"}])
        file.finish()
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == ["ä", "b", "c"]
    assert {entry.name for entry in path.parent.iterdir()} == {"answers.jsonl", "answers.jsonl.origin"}
    with answer_file(path, ORIGIN) as file:
        assert (file.complete, file.lines) == (True, 3)
    assert written_by(path) == "abc"


def test_line_that_a_kill_truncated_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with answer_file(path, ORIGIN) as file:
        file.add([{"n": 0}, {"n": 1}])
    part = tmp_path / "answers.jsonl.part"
    part.write_bytes(part.read_bytes()[:-4])
    with answer_file(path, ORIGIN) as file:
        assert file.lines == 1
        file.add([{"n": 1}])
        file.finish()
    assert path.read_text() == '{"n": 0}\n{"n": 1}\n'


def test_second_writer_is_told_to_wait(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with (
        answer_file(path, ORIGIN),
        pytest.raises(TryAgain, match="another process is writing it"),
        answer_file(path, ORIGIN),
    ):
        raise AssertionError("it was let in")


def test_file_that_is_made_otherwise_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with answer_file(path, ORIGIN):
        pass
    with pytest.raises(ConfigurationDiffers, match="seed: 0 there, 1 asked"), answer_file(path, ORIGIN | {"seed": 1}):
        raise AssertionError("it was continued")
    other = tmp_path / "other.jsonl"
    other.write_text("{}\n")
    with pytest.raises(UsageError, match="nothing says how it was made"), answer_file(other, ORIGIN):
        raise AssertionError("it was taken over")
    with pytest.raises(UsageError, match="choose a file that can be written"), answer_file(other / "x", ORIGIN):
        raise AssertionError("it was written")


@pytest.mark.parametrize("content", [None, "no JSON", "[]", '{"written_by": 3}'])
def test_other_files_have_no_author(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    if content is not None:
        origin_of(path).write_text(content)
    assert written_by(path) is None
