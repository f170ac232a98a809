"""Removing: what no manifest names goes, what one names stays, whenever a process is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from arwkv_store import NotFound, TryAgain, UsageError, open_dataset
from arwkv_store.commands.copy import copy_dataset
from arwkv_store.commands.removing import collect_garbage, remove_dataset
from arwkv_store.dataset.garbage import collect, find_garbage
from arwkv_store.dataset.remove import plan_removal, remove
from arwkv_store.dataset.summarize import summarize
from arwkv_store.format.layout import data_file_name
from arwkv_store.places.commit import temporary_file
from arwkv_store.places.pulse import Pulse
from store_examples import write_example_dataset


def _left(uri: str) -> list[int]:
    dataset = open_dataset(uri)
    assert [sample.sample_id for sample in dataset] == sorted(sample.sample_id for sample in dataset)
    return [manifest.part for manifest in dataset.shards]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of parts 0 and 2 with leftovers of part 1, of a dead and of a living writer, and a stranger's file."""
    monkeypatch.setenv("ARWKV_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "data"
    write_example_dataset(place, parts=[0, 2])
    (place / "shards" / "part-000001.arrow").write_bytes(b"left")
    (place / "shards" / f"part-000002.{'ab' * 16}.arrow").write_bytes(b"other")
    (place / "shards" / ".new-dead").write_bytes(b"half")
    (place / "shards" / "notes.txt").write_text("mine")
    return place


GARBAGE = [".new-dead", "part-000001.arrow", f"part-000002.{'ab' * 16}.arrow"]


def test_only_what_no_manifest_names_is_garbage(folder: Path) -> None:
    with temporary_file(folder / "shards") as living:
        found = find_garbage(str(folder), 0.0)
        assert sorted(Path(one.name).name for one in found) == GARBAGE
        assert collect_garbage(str(folder), 0.0, yes=False, quiet=True)["removed"] is False
        assert (folder / "shards" / "part-000001.arrow").exists()
        assert len(collect_garbage(str(folder), 0.0, yes=True, quiet=True)["files"]) == 3
        assert Path(living.name).exists()
    assert find_garbage(str(folder), 0.0) == []
    assert (folder / "shards" / "notes.txt").exists()
    assert _left(str(folder)) == [0, 2]


def test_young_files_and_parts_with_a_damaged_manifest_are_left_alone(folder: Path) -> None:
    assert find_garbage(str(folder), 3600.0) == []
    manifest = folder / "shards" / "part-000002.json"
    manifest.write_bytes(manifest.read_bytes()[:-5])
    assert not any("part-000002" in one.name for one in find_garbage(str(folder), 0.0))


def test_places_without_datasets_and_services_are_refused(tmp_path: Path) -> None:
    for function in (plan_removal, lambda uri: find_garbage(uri, 0.0), lambda uri: list(collect(uri, 0.0))):
        with pytest.raises(NotFound):
            function(str(tmp_path))
        with pytest.raises((UsageError, NotFound)):
            function("http://127.0.0.1:9/v1/datasets/x")


@pytest.fixture
def in_memory(folder: Path) -> Any:
    """The same leftovers in an object store."""
    list(copy_dataset(str(folder), "memory://gc"))
    memory = fsspec.filesystem("memory")
    memory.pipe_file(f"/gc/shards/{data_file_name(1, 'rows', 'cd' * 32)}", b"left")
    yield "memory://gc"
    memory.rm("/gc", recursive=True)


class _Killed(BaseException):
    pass


def _dying(monkeypatch: pytest.MonkeyPatch, after: int) -> Callable[[], None]:
    """Changes of the store come to an end after so many; the result counts them anew."""
    done = [0]
    for name in ("cp_file", "rm_file", "pipe_file"):
        real = getattr(MemoryFileSystem, name)

        def counted(self: Any, *given: Any, _real: Any = real, **more: Any) -> Any:
            if done[0] >= after:
                raise _Killed
            done[0] += 1
            return _real(self, *given, **more)

        monkeypatch.setattr(MemoryFileSystem, name, counted)
    return lambda: done.__setitem__(0, -1000)


@pytest.mark.parametrize("after", range(4))
def test_collection_killed_at_any_step_is_completed_by_the_next(
    in_memory: str, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    with monkeypatch.context() as patched:
        _dying(patched, after)
        if after < 3:
            with pytest.raises(_Killed):
                list(collect(in_memory, 0.0))
    assert _left(in_memory) == [0, 2]
    list(collect(in_memory, 0.0))
    names = [name for name in fsspec.filesystem("memory").find("/gc") if "part-000001" in name or "collected" in name]
    assert names == []
    assert _left(in_memory) == [0, 2]


def test_object_that_a_manifest_comes_to_name_is_brought_back(in_memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer commits the part between the look at its manifest and the removal of its data."""
    memory, real = fsspec.filesystem("memory"), MemoryFileSystem.rm_file
    made = "memory://made"
    write_example_dataset(made, parts=[0, 1, 2])
    for name in memory.find("/made/shards"):
        if "part-000001" in name and not name.endswith(".json"):
            memory.cp_file(name, name.replace("/made/", "/gc/"))

    def commit_before(self: Any, path: str) -> None:
        if "part-000001" in path and not memory.exists("/gc/shards/part-000001.json"):
            memory.pipe_file("/gc/shards/part-000001.json", memory.cat_file("/made/shards/part-000001.json"))
        real(self, path)

    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "rm_file", commit_before)
        list(collect(in_memory, 0.0))
    assert _left(in_memory) == [0, 1, 2]
    assert len(open_dataset(in_memory)) == 10
    memory.rm("/made", recursive=True)


def test_nothing_is_collected_in_a_store_while_a_capture_runs(in_memory: str) -> None:
    with Pulse(in_memory, kind="capture", unit="shards"), pytest.raises(TryAgain, match="a capture is running"):
        find_garbage(in_memory, 0.0)
    assert find_garbage(in_memory, 0.0)


@pytest.mark.parametrize("place", ["folder", "in_memory"])
def test_removal_interrupted_anywhere_is_completed_and_leaves_other_files(
    request: pytest.FixtureRequest, place: str
) -> None:
    uri = str(request.getfixturevalue(place))
    if place == "folder":
        collect_garbage(uri, 0.0, yes=True, quiet=True)
    summarize(uri)
    removal = plan_removal(uri)
    assert remove_dataset(uri, yes=False, quiet=True)["parts"] == removal.parts == 2
    assert _left(uri) == [0, 2]
    for step in range(len(removal.names) - 1):
        steps = remove(uri, plan_removal(uri))
        next(steps)
        steps.close()
        assert set(_left(uri)) <= {0, 2}, step
        assert plan_removal(uri).names == removal.names[step + 1 :]
    remove_dataset(uri, yes=True, quiet=True)
    with pytest.raises(NotFound):
        open_dataset(uri)
    if place == "folder":
        assert os.listdir(Path(uri) / "shards") == ["notes.txt"]


KILLED = """
import sys, time
from arwkv_store.dataset.garbage import collect
print("go", flush=True)
while True:
    list(collect(sys.argv[1], 0.0))
"""
WRITING = """
import sys
sys.path.insert(0, sys.argv[2])
from store_examples import example_dataset_info, write_example_dataset
print("go", flush=True)
write_example_dataset(sys.argv[1], info=example_dataset_info(samples=400, layers=()))
"""


@pytest.mark.slow
@pytest.mark.crash
def test_no_committed_part_is_lost_whoever_is_killed_whenever(tmp_path: Path) -> None:
    """Writers and collectors over one folder, each killed at some moment, 100 times both."""
    uri, tests = str(tmp_path / "data"), str(Path(__file__).parents[1])
    committed: set[int] = set()
    for kill in range(100):
        commands = ([sys.executable, "-c", WRITING, uri, tests], [sys.executable, "-c", KILLED, uri])
        if not (tmp_path / "data" / "dataset.json").exists():
            commands = commands[:1]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in commands]
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        time.sleep(0.002 * (kill % 25))
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        if (tmp_path / "data" / "dataset.json").exists():
            now = set(_left(uri))
            assert committed <= now
            committed = now
    assert len(committed) > 10
