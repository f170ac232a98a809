"""What a file system refuses is named for what it is, with a way out that works there; only what passes is 75."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from arwkv_store import ArwkvError, create_dataset, open_dataset
from arwkv_store.arrow import arrow_file
from arwkv_store.places import cache, commit
from store_examples import assert_same_sample, example_dataset_info, example_samples, write_example_dataset

FAULTS = {
    errno.EACCES: (2, "give this user the permission"),
    errno.EROFS: (2, "mounted read-only"),
    errno.ENOSPC: (75, "free disk space, then run the same command again"),
    errno.EDQUOT: (75, "free disk space, then run the same command again"),
    errno.EIO: (1, "the disk fails"),
    errno.ESTALE: (1, "mount it again"),
    errno.ENOLCK: (1, "no file locks"),
    errno.EOPNOTSUPP: (1, "no file locks"),
    errno.EUCLEAN: (1, "see to the disk or the mount"),
}


@pytest.mark.parametrize("number", FAULTS, ids=errno.errorcode.get)
def test_each_fault_of_writing_has_its_exit_code_and_its_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    writer = create_dataset(tmp_path, example_dataset_info())

    def failing(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", failing)
        with pytest.raises(ArwkvError) as refused:
            writer.write_shard(0, example_samples(4))
    exit_code, way_out = FAULTS[number]
    assert refused.value.exit_code == exit_code
    assert os.strerror(number) in str(refused.value)
    assert way_out in str(refused.value)
    writer.write_shard(0, example_samples(4))


def without_hard_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: str, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), source)

    monkeypatch.setattr(os, "link", refused)


def test_a_dataset_is_written_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_hard_links(monkeypatch)
    samples = write_example_dataset(tmp_path)
    for read, written in zip(open_dataset(tmp_path), samples, strict=True):
        assert_same_sample(read, written)


def test_the_first_commit_wins_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_hard_links(monkeypatch)
    assert commit.write_once(tmp_path / "name", b"first")
    assert not commit.write_once(tmp_path / "name", b"second")
    assert (tmp_path / "name").read_bytes() == b"first"
    assert not list(tmp_path.glob(f"{commit.TEMPORARY_PREFIX}*"))


def test_abandoned_files_go_where_locks_need_an_open_for_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS emulates flock by a lock of a byte range, which asks for the mode of the open file."""
    plain = fcntl.flock

    def of_nfs(descriptor: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        plain(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    dead = tmp_path / f"{commit.TEMPORARY_PREFIX}dead"
    dead.write_bytes(b"half")
    assert cache._abandoned(dead)
    commit.remove_abandoned(tmp_path)
    assert not dead.exists()


@pytest.mark.parametrize(("number", "way_out"), [(errno.EIO, "the disk fails"), (errno.ESTALE, "mount it again")])
def test_a_page_that_the_disk_cannot_give_is_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, way_out: str
) -> None:
    write_example_dataset(tmp_path)
    plain = os.pread

    def failing(descriptor: int, length: int, offset: int) -> bytes:
        if offset > 4000:
            raise OSError(number, os.strerror(number))
        return plain(descriptor, length, offset)

    monkeypatch.setattr(arrow_file.os, "pread", failing)
    with pytest.raises(ArwkvError, match=rf"part-000000\S*\.arrow: {os.strerror(number)}; .*{way_out}") as refused:
        list(open_dataset(tmp_path))
    assert refused.value.exit_code == 1
