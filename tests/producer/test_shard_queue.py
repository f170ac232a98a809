"""Writing runs beside the capture, holds it back where the disk is slow, and its faults reach the run."""

import threading
from typing import Any

import pytest

from arwkv_producer.run.shard_queue import PARTS_WAITING, ShardQueue
from arwkv_store.errors import TryAgain


class SlowWriter:
    """Writes a part when allowed to."""

    def __init__(self) -> None:
        self.allowed, self.begun = threading.Semaphore(0), threading.Semaphore(0)
        self.written: list[int] = []

    def write_shard(self, part: int, samples: Any) -> int:
        self.begun.release()
        assert self.allowed.acquire(timeout=30)
        self.written.append(part)
        return part


class FullDisk:
    """Writes nothing."""

    def write_shard(self, part: int, samples: Any) -> int:
        raise TryAgain(f"part {part}: no space left")


def test_a_slow_disk_holds_the_capture_back() -> None:
    writer, acknowledged, handed_over = SlowWriter(), list[Any](), list[int]()
    all_in = threading.Event()

    def capture() -> None:
        with ShardQueue(writer, acknowledged.append) as shards:  # type: ignore[arg-type]  # a writer for the test
            for part in range(5):
                shards.put(part, [])
                handed_over.append(part)
        all_in.set()

    thread = threading.Thread(target=capture)
    thread.start()
    assert writer.begun.acquire(timeout=30)
    # One part is being written and so many wait: the next `put` does not come back.
    assert not all_in.wait(0.2)
    assert len(handed_over) <= 1 + PARTS_WAITING
    assert acknowledged == [], "nothing is acknowledged before its commit"
    for _ in range(5):
        writer.allowed.release()
    thread.join(timeout=30)
    assert acknowledged == writer.written == [0, 1, 2, 3, 4]


def test_several_writers_have_a_part_each_and_hold_the_capture_back_no_less() -> None:
    writer, acknowledged, handed_over = SlowWriter(), list[Any](), list[int]()

    def capture() -> None:
        with ShardQueue(writer, acknowledged.append, writers=3) as shards:  # type: ignore[arg-type]  # for the test
            for part in range(10):
                shards.put(part, [])
                handed_over.append(part)

    thread = threading.Thread(target=capture)
    thread.start()
    for _ in range(3):
        assert writer.begun.acquire(timeout=30)
    assert not writer.begun.acquire(timeout=0.2), "three have one each"
    assert len(handed_over) <= 3 + PARTS_WAITING
    for _ in range(10):
        writer.allowed.release()
    thread.join(timeout=30)
    assert sorted(acknowledged) == sorted(writer.written) == list(range(10))


@pytest.mark.parametrize("writers", [1, 3])
def test_a_failed_write_ends_the_capture(writers: int) -> None:
    handed_over = list[int]()

    def capture() -> None:
        disk: Any = FullDisk()
        with ShardQueue(disk, lambda manifest: None, writers) as shards:
            for part in range(100):
                shards.put(part, [])
                handed_over.append(part)

    with pytest.raises(TryAgain, match=r"part \d: no space left"):
        capture()
    assert len(handed_over) < 20
