"""Two writers of one part, taking turns at every call of the store in an order that a seed decides."""

import contextlib
import hashlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from arwkv_store import ShardManifest, create_dataset
from arwkv_store.places.object_target import ObjectTarget
from store_examples import example_dataset_info, example_samples

Contender = tuple[ShardManifest, dict[str, Path]]
CALLS = ("exists", "cat_file", "put_file", "pipe_file", "rm_file")
LOST_ANSWERS = 0.05
"""Share of the calls that act and then fail, as when an answer is lost."""


def example_contenders(folder: Path) -> list[Contender]:
    """One part of the example dataset with two contents: manifests, and data files by kind."""
    contenders = []
    for seed in range(2):
        place = folder / str(seed)
        manifest = create_dataset(place, example_dataset_info()).write_shard(0, example_samples(4, seed=seed))
        contenders.append((manifest, {kind: place / "shards" / file.name for kind, file in manifest.files.items()}))
    return contenders


def race(uri: str, contenders: list[Contender], seed: int) -> None:
    """Publish all at once; assert that one commits, the others are told so, and no committed byte ever changes."""
    told: dict[int, bool] = {}

    def publish(number: int) -> None:
        manifest, paths = contenders[number]
        target = ObjectTarget(uri)
        with turns.taken(), contextlib.ExitStack() as files:
            opened: dict[str, Any] = {kind: files.enter_context(path.open("rb")) for kind, path in paths.items()}
            told[number] = target.publish(target.placed(manifest), opened)

    writers = [threading.Thread(target=publish, args=(number,)) for number in range(len(contenders))]
    turns = _Turns(writers, random.Random(seed), _Watch(uri))
    with pytest.MonkeyPatch.context() as patch:
        for call in CALLS:
            patch.setattr(MemoryFileSystem, call, turns.before(getattr(MemoryFileSystem, call)))
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
    assert sorted(told.values()) == [False] * (len(contenders) - 1) + [True], f"seed {seed}: {told}"
    (winner,) = (number for number, won in told.items() if won)
    turns.watch.require(ObjectTarget(uri).placed(contenders[winner][0]).to_bytes())


class _Watch:
    """Compares what is committed after every call with what was first committed."""

    def __init__(self, uri: str) -> None:
        self._folder, self._store = f"/{uri.removeprefix('memory://')}/shards", fsspec.filesystem("memory").store
        self._committed = b""

    def look(self) -> None:
        manifest = self._store.get(f"{self._folder}/part-000000.json")
        if manifest is not None:
            self._committed = self._committed or manifest.getvalue()
            self.require(manifest.getvalue())

    def require(self, manifest: bytes) -> None:
        assert manifest == self._committed
        for file in json.loads(manifest)["files"].values():
            content = self._store[f"{self._folder}/{file['name']}"].getvalue()
            assert hashlib.sha256(content).hexdigest() == file["sha256"]


class _Turns:
    """Lets one of the threads at a time do one call, when all that still run wait for theirs."""

    def __init__(self, threads: list[threading.Thread], chance: random.Random, watch: _Watch) -> None:
        self.watch = watch
        self._chance, self._running = chance, list(threads)
        self._waiting: list[threading.Thread] = []
        self._next: threading.Thread | None = None
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        try:
            yield
        finally:
            with self._changed:
                self._running.remove(threading.current_thread())
                self._choose()

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def in_turn(*arguments: Any, **keywords: Any) -> Any:
            if threading.current_thread() not in self._running:
                return call(*arguments, **keywords)
            self._wait()
            answer = call(*arguments, **keywords)
            self.watch.look()
            if self._chance.random() < LOST_ANSWERS:
                raise OSError("connection reset after the store had acted")
            return answer

        return in_turn

    def _wait(self) -> None:
        me = threading.current_thread()
        with self._changed:
            self._waiting.append(me)
            self._choose()
            self._changed.wait_for(lambda: self._next is me)
            self._waiting.remove(me)
            self._next = None

    def _choose(self) -> None:
        if self._next is None and self._waiting and len(self._waiting) == len(self._running):
            self._next = self._chance.choice(sorted(self._waiting, key=lambda thread: thread.name))
            self._changed.notify_all()
