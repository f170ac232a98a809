"""A part is committed whole and durably or not at all, whatever fails and whenever."""

import contextlib
import errno
import fcntl
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arwkv_store import StorageFault, TryAgain, create_dataset, open_dataset
from arwkv_store.places import commit
from store_examples import assert_same_sample, example_dataset_info, example_samples, write_example_dataset

RECORDED = ("fsync", "replace", "link", "unlink", "open")


class _Disk:
    """Stands in for `os` and `open` in the commit module: records what is done, fails the n-th of it."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.operations: list[str] = []
        self._fail_at = fail_at

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name not in RECORDED:
            return function

        def recorded(*arguments: Any, **keywords: Any) -> Any:
            target = arguments[1] if name in ("replace", "link") else arguments[0]
            self.did(f"{name} {self._name(target)}")
            return function(*arguments, **keywords)

        return recorded

    def did(self, operation: str) -> None:
        """Record, and fail if it is this one's turn."""
        self.operations.append(operation)
        if self._fail_at == len(self.operations) - 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def open_file(self, path: Any, mode: str, **keywords: Any) -> Any:
        """A file whose writes are recorded."""
        self.did(f"create {self._name(path)}" if "x" in mode else f"open {self._name(path)}")
        return _File(open(path, mode, **keywords), self) if "x" in mode else open(path, mode, **keywords)

    @staticmethod
    def _name(target: Any) -> str:
        path = Path(os.readlink(f"/proc/self/fd/{target}")) if isinstance(target, int) else Path(target)
        return "temporary" if path.name.startswith(commit.TEMPORARY_PREFIX) else path.name


class _File:
    def __init__(self, file: Any, disk: _Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, content: Any) -> int:
        self._disk.did("write temporary")
        return int(self._file.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


@pytest.fixture
def use_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[_Disk], None]:
    def use(disk: _Disk) -> None:
        monkeypatch.setattr(commit, "os", disk)
        monkeypatch.setattr(commit, "open", disk.open_file, raising=False)

    return use


def test_every_file_is_flushed_before_it_is_named_and_the_manifest_comes_last(
    tmp_path: Path, use_disk: Callable[[_Disk], None]
) -> None:
    writer = create_dataset(tmp_path, example_dataset_info())
    disk = _Disk()
    use_disk(disk)
    writer.write_shard(0, example_samples(4))
    seen = [operation for operation in disk.operations if operation != "write temporary"]
    assert seen == [
        "create temporary",
        "create temporary",
        "fsync temporary",
        "fsync temporary",
        "open dataset.json",
        "replace part-000000.arrow",
        "replace part-000000.hidden.arrow",
        "open shards",
        "fsync shards",
        "create temporary",
        "fsync temporary",
        "link part-000000.json",
        "unlink temporary",
        "open shards",
        "fsync shards",
        "unlink temporary",
        "unlink temporary",
    ]


def test_folders_and_dataset_json_are_flushed(tmp_path: Path, use_disk: Callable[[_Disk], None]) -> None:
    disk = _Disk()
    use_disk(disk)
    create_dataset(tmp_path / "new" / "data", example_dataset_info())
    assert disk.operations == [
        f"open {tmp_path.name}",
        f"fsync {tmp_path.name}",
        "open new",
        "fsync new",
        "open data",
        "fsync data",
        "create temporary",
        "write temporary",
        "fsync temporary",
        "link dataset.json",
        "unlink temporary",
        "open data",
        "fsync data",
    ]


def test_failure_at_any_operation_leaves_all_or_nothing_and_the_same_command_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = example_samples(2)
    n = 0
    while True:
        folder, disk = tmp_path / str(n), _Disk(fail_at=n)
        with monkeypatch.context() as patch:
            patch.setattr(commit, "os", disk)
            patch.setattr(commit, "open", disk.open_file, raising=False)
            with contextlib.suppress(StorageFault, TryAgain):
                create_dataset(folder, example_dataset_info()).write_shard(0, samples)
        if len(disk.operations) <= n:
            break
        failed = disk.operations[n]
        if (folder / "dataset.json").exists() and (dataset := open_dataset(folder)):
            assert [sample.sample_id for sample in dataset] == [0, 1], failed
        else:
            assert not list(folder.glob("shards/part-*")), failed
        create_dataset(folder, example_dataset_info()).write_shard(0, samples)
        for read, written in zip(open_dataset(folder), samples, strict=True):
            assert_same_sample(read, written)
        assert not list(folder.rglob(f"{commit.TEMPORARY_PREFIX}*")), failed
        n += 1
    assert n > 20


def test_full_disk_is_a_typed_error_without_debris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = create_dataset(tmp_path, example_dataset_info())

    def full(path: Any, mode: str, **keywords: Any) -> Any:
        return open("/dev/full", "wb", **keywords) if "x" in mode else open(path, mode, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(commit, "open", full, raising=False)
        with pytest.raises(TryAgain, match="No space left on device; nothing was committed: free disk space"):
            writer.write_shard(0, example_samples(4))
    assert not list((tmp_path / "shards").iterdir())
    writer.write_shard(0, example_samples(4))
    assert len(open_dataset(tmp_path)) == 4


WRITE = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from arwkv_store import ArwkvError
from store_examples import write_example_dataset
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    write_example_dataset(sys.argv[2])
except ArwkvError as error:
    print(type(error).__name__, error)
    raise SystemExit(error.exit_code)
"""


def test_file_size_limit_is_a_typed_error_and_the_same_command_resumes(tmp_path: Path) -> None:
    def write(limit_bytes: int) -> subprocess.CompletedProcess[str]:
        tests = str(Path(__file__).parents[1])
        command = [sys.executable, "-c", WRITE, tests, str(tmp_path), str(limit_bytes)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    refused = write(9000)
    assert (refused.returncode, refused.stdout.split()[0]) == (1, "StorageFault"), refused.stderr
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["dataset.json"]
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    assert write(1 << 30 if unlimited == resource.RLIM_INFINITY else unlimited).returncode == 0
    assert len(open_dataset(tmp_path)) == 10


def test_abandoned_temporary_files_go_and_those_in_use_stay(tmp_path: Path) -> None:
    create_dataset(tmp_path, example_dataset_info())
    (tmp_path / "shards" / f"{commit.TEMPORARY_PREFIX}dead").write_bytes(b"half")
    with commit.temporary_file(tmp_path / "shards") as alive:
        create_dataset(tmp_path, example_dataset_info())
        assert [str(path) for path in (tmp_path / "shards").iterdir()] == [alive.name]


def test_file_taken_for_abandoned_before_it_was_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = create_dataset(tmp_path, example_dataset_info())
    locks, plain = [0], fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        locks[0] += 1
        if locks[0] == 1:
            commit.remove_abandoned(tmp_path / "shards")
        plain(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    writer.write_shard(0, example_samples(4))
    assert len(open_dataset(tmp_path)) == 4


def test_manifest_whose_name_was_not_flushed_is_said_to_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = create_dataset(tmp_path, example_dataset_info())
    plain, calls = commit.sync_folder, [0]

    def failing(folder: Path) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        plain(folder)

    monkeypatch.setattr(commit, "sync_folder", failing)
    with pytest.raises(TryAgain, match=r"part-000000\.json is complete and named") as said:
        writer.write_shard(0, example_samples(4))
    assert "nothing was committed" not in str(said.value)
    assert len(open_dataset(tmp_path)) == 4


def _kill_writers(tmp_path: Path, kills: int) -> None:
    """Kill a writing process at random instants; after each, all it acknowledged must be there and all there whole."""
    info = example_dataset_info(samples=600, samples_per_part=2, layers=(0,))
    expected = {sample.sample_id: sample for sample in example_samples(600, info=info)}
    context, chance = multiprocessing.get_context("fork"), random.Random(0)
    acknowledged: set[int] = set()
    folder = tmp_path / "0"
    for kill in range(kills):
        if len(acknowledged) > 250:
            folder, acknowledged = tmp_path / str(kill), set()
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_write_parts, args=(folder, info, theirs))
        child.start()
        theirs.close()
        acknowledged.add(ours.recv())
        # A pause of random length, which ends early if the child does.
        multiprocessing.connection.wait([child.sentinel], timeout=chance.uniform(0, 0.04))
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        while ours.poll():
            try:
                acknowledged.add(ours.recv())
            except EOFError:
                break
        ours.close()
        dataset = open_dataset(folder)
        present = {manifest.part for manifest in dataset.shards}
        assert acknowledged <= present
        for sample in dataset[-6:] if len(dataset) > 6 else dataset:
            assert_same_sample(sample, expected[sample.sample_id])
    for folder in tmp_path.iterdir():
        for sample in open_dataset(folder):
            assert_same_sample(sample, expected[sample.sample_id])
        create_dataset(folder, info)
        assert not list(folder.rglob(f"{commit.TEMPORARY_PREFIX}*"))


def _write_parts(folder: Path, info: Any, answers: Any) -> None:
    writer = create_dataset(folder, info)
    for part in writer.missing_parts():
        writer.write_shard(part, example_samples(2, first_sample_id=2 * part, info=info))
        answers.send(part)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed_writer_leaves_only_whole_parts_and_all_it_acknowledged(tmp_path: Path) -> None:
    _kill_writers(tmp_path, 15)


@pytest.mark.crash
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_five_hundred_killed_writers_leave_only_whole_parts(tmp_path: Path) -> None:
    _kill_writers(tmp_path, 500)


def test_second_run_finds_nothing_missing(tmp_path: Path) -> None:
    write_example_dataset(tmp_path)
    assert create_dataset(tmp_path, example_dataset_info()).missing_parts() == []
