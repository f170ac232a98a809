"""The commands print tables or one JSON document, and exit with the code that says what happened."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from arwkv_store import cli, open_dataset
from arwkv_store.format.seal import sealed, unsealed
from store_examples import assert_same_sample, write_example_dataset

Run = Any


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["store", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return command


def test_ls_shows_parts_of_a_dataset_and_datasets_of_a_folder(tmp_path: Path, run: Run) -> None:
    write_example_dataset(tmp_path / "one")
    code, out, _ = run("ls", tmp_path / "one")
    assert code == 0
    assert "0..3" in out
    assert "8..9" in out
    code, out, _ = run("ls", tmp_path, "--json")
    (row,) = json.loads(out)["datasets"]
    assert (code, row["name"], row["parts"], row["samples"]) == (0, "one", 3, 10)


def test_info_names_teacher_and_capture(tmp_path: Path, run: Run) -> None:
    write_example_dataset(tmp_path)
    code, out, _ = run("info", tmp_path)
    assert (code, "example/teacher" in out, "capture.top_k" in out) == (0, True, True)
    document = json.loads(run("info", tmp_path, "--json")[1])
    assert document["capture"]["top_k"] == 8
    assert document["committed"]["samples"] == 10


def test_stats_of_dataset_and_part(tmp_path: Path, run: Run) -> None:
    write_example_dataset(tmp_path)
    assert "teacher perplexity" in run("stats", tmp_path)[1]
    whole = json.loads(run("stats", tmp_path, "--json")[1])
    part = json.loads(run("stats", tmp_path, "--part", 1, "--json")[1])
    assert (whole["samples"], part["samples"]) == (10, 4)
    assert whole["bytes_per_token"]["logits"] == pytest.approx(whole["bytes_by_column"]["logits"] / whole["tokens"])
    assert run("stats", tmp_path, "--part", 7)[0] == 2


@pytest.mark.parametrize("deep", [(), ("--deep",)])
def test_verify_passes_a_sound_dataset(tmp_path: Path, run: Run, deep: tuple[str, ...]) -> None:
    write_example_dataset(tmp_path)
    code, out, _ = run("verify", tmp_path, *deep)
    assert (code, "3 parts" in out, "0 damaged" in out) == (0, True, True)


def test_verify_names_the_damage_and_repair_sets_it_aside(tmp_path: Path, run: Run) -> None:
    written = write_example_dataset(tmp_path)
    path = tmp_path / "shards/part-000001.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    code, out, err = run("verify", tmp_path, "--json")
    assert code == 3
    assert "part-000001.arrow: record batch 0" in json.loads(out)["damaged"]["1"]
    assert "--repair" in err
    code, out, _ = run("verify", tmp_path, "--repair")
    assert (code, "make it again" in out) == (0, True)
    assert [manifest.part for manifest in open_dataset(tmp_path).shards] == [0, 2]
    write_example_dataset(tmp_path, parts=[1])
    for read, sample in zip(open_dataset(tmp_path), written, strict=True):
        assert_same_sample(read, sample)


def test_verify_tells_of_missing_parts_and_of_data_without_a_manifest(tmp_path: Path, run: Run) -> None:
    write_example_dataset(tmp_path, parts=[0, 2])
    (tmp_path / "shards/part-000002.json").unlink()
    code, out, _ = run("verify", tmp_path)
    assert (code, "2 of 3 planned parts are not committed: 1, 2" in out) == (0, True)
    assert "without a manifest" in out
    document = json.loads(run("verify", tmp_path, "--json")[1])
    assert document["missing"] == [1, 2]
    assert document["unclaimed"] == ["part-000002.arrow", "part-000002.hidden.arrow"]


def test_repair_leaves_parts_of_a_newer_version_in_place(tmp_path: Path, run: Run) -> None:
    write_example_dataset(tmp_path)
    manifest = tmp_path / "shards/part-000001.json"
    manifest.write_bytes(sealed({**unsealed(manifest.read_bytes(), "manifest"), "format_version": 3}))
    code, out, err = run("verify", tmp_path, "--repair", "--json")
    assert (code, list(json.loads(out)["newer"]), json.loads(out)["set_aside"]) == (2, ["1"], [])
    assert err.splitlines()[-1].startswith("store: UnsupportedVersion: ")
    assert manifest.exists()


def test_note_is_kept_shown_and_refused(tmp_path: Path, run: Run) -> None:
    write_example_dataset(tmp_path)
    code, out, _ = run("note", tmp_path)
    assert (code, "no tags" in out, "no text" in out) == (0, True, True)
    run("note", tmp_path, "--text", "two\nlines", "--tag", "a", "b")
    code, out, _ = run("note", tmp_path, "--untag", "a")
    assert (code, out.splitlines()[1:]) == (0, ["two", "lines"])
    document = json.loads(run("note", tmp_path, "--json")[1])
    assert (document["text"], document["tags"]) == ("two\nlines", ["b"])
    code, _, err = run("note", tmp_path, "--tag", "NO")
    assert (code, err.count("\n")) == (2, 1)


def test_missing_dataset_is_a_usage_error_in_one_line(tmp_path: Path, run: Run) -> None:
    code, _, err = run("info", tmp_path / "nothing")
    assert (code, err.count("\n")) == (2, 1)
    assert "dataset.json" in err
