"""Reading over HTTP: complete, verified, and patient with a bad line."""

import itertools
import json
import multiprocessing
import pickle
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from api_eventually import eventually
from arwkv_store import CorruptShard, NotFound, TryAgain, UsageError, open_dataset
from arwkv_store.commands.copy import copy_dataset
from arwkv_store.commands.verify import verify_dataset
from arwkv_store.dataset import reader
from arwkv_store.dataset.sampler import BLOCK_SHARDS, ShardSampler
from arwkv_store.places import retry
from arwkv_store.places.cache import FileCache
from store_examples import assert_same_sample, example_dataset_info, read_sample_id, write_example_dataset
from store_server import Fault, parts_fetched, served


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARWKV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.0)


def test_served_dataset_reads_like_the_folder(tmp_path: Path) -> None:
    written = write_example_dataset(tmp_path / "data")
    with served(tmp_path / "data") as service:
        dataset = open_dataset(service.uri)
        for read, sample in zip(dataset, written, strict=True):
            assert_same_sample(read, sample)
        assert dataset.stats() == open_dataset(tmp_path / "data").stats()
        assert_same_sample(pickle.loads(pickle.dumps(dataset))[5], written[5])


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_worker_processes_share_one_cache(tmp_path: Path, method: str) -> None:
    write_example_dataset(tmp_path / "data")
    with served(tmp_path / "data") as service:
        dataset = open_dataset(service.uri, columns=["logits"])
        with multiprocessing.get_context(method).Pool(3) as pool:
            asked = [(dataset, i) for i in (0, 5, 9, 1, 6, 8)]
            assert pool.map(read_sample_id, asked, chunksize=1) == [0, 5, 9, 1, 6, 8]
        fetched = [path for path in service.requests if "/data?" in path]
        assert len(fetched) == len(set(fetched)) == 3


def test_samples_are_read_from_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_OPEN_SHARDS", 2)
    written = write_example_dataset(tmp_path / "data", info=example_dataset_info(samples=30))
    with served(tmp_path / "data") as service:
        dataset = open_dataset(service.uri)
        with ThreadPoolExecutor(8) as pool:
            for read, sample in zip(pool.map(dataset.__getitem__, [*range(30)] * 4), written * 4, strict=True):
                assert_same_sample(read, sample)


def test_list_shorter_than_the_dataset_is_not_taken_for_all_of_it(tmp_path: Path) -> None:
    write_example_dataset(tmp_path / "data")

    def short(path: str, body: bytes) -> tuple[int, bytes]:
        page = json.loads(body) if "/shards?" in path else {}
        return 200, json.dumps({**page, "next_cursor": None}).encode() if page else body

    with served(tmp_path / "data") as service:
        service.fault = short
        with pytest.raises(TryAgain, match="2 of 3 committed shards were listed"):
            open_dataset(service.uri)


def test_hidden_file_is_fetched_only_when_asked_for(tmp_path: Path) -> None:
    write_example_dataset(tmp_path / "data")
    with served(tmp_path / "data") as service:
        assert open_dataset(service.uri, columns=["logits"])[0].logits is not None
        assert not [path for path in service.requests if "file=hidden" in path]


def test_second_reader_fetches_nothing_again(tmp_path: Path) -> None:
    write_example_dataset(tmp_path / "data")
    with served(tmp_path / "data") as service:
        list(open_dataset(service.uri))
        service.requests.clear()
        list(open_dataset(service.uri))
        assert not [path for path in service.requests if "/data?" in path]


def test_line_that_drops_at_random_bytes_loses_nothing(tmp_path: Path) -> None:
    written = write_example_dataset(tmp_path / "data")
    chance = random.Random(0)
    with served(tmp_path / "data") as service:
        dataset = open_dataset(service.uri)
        service.fault = lambda path, body: (
            200,
            body[: chance.randrange(1, len(body) + 1)] if "/data?" in path else body,
        )
        for read, sample in zip(dataset, written, strict=True):
            assert_same_sample(read, sample)
        assert any("bytes=" in path for path in service.requests)


def test_server_without_ranges_is_read_all_the_same(tmp_path: Path) -> None:
    written = write_example_dataset(tmp_path / "data")
    drops = [100, 2000]
    with served(tmp_path / "data") as service:
        service.ignore_range = True
        dataset = open_dataset(service.uri)
        service.fault = lambda path, body: (200, body[: drops.pop()] if drops and "/data?" in path else body)
        assert_same_sample(dataset[0], written[0])


def test_busy_server_is_asked_again_and_a_dead_one_given_up(tmp_path: Path) -> None:
    write_example_dataset(tmp_path / "data")
    refusals = [503, 500, 429]
    with served(tmp_path / "data") as service:
        service.fault = lambda path, body: (refusals.pop(), b"{}") if refusals else (200, body)
        assert len(open_dataset(service.uri)) == 10
        service.fault = lambda path, body: (503, b'{"detail": "restarting"}')
        with pytest.raises(TryAgain, match=r"HTTP 503 restarting \(6 attempts") as given_up:
            open_dataset(service.uri)
        assert given_up.value.exit_code == 75
    with pytest.raises(TryAgain, match="attempts"):
        open_dataset(service.uri)


@pytest.mark.parametrize(("asked", "waited_s"), [("7", 7.0), ("86400", 300.0), ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0)])
def test_as_long_as_a_busy_server_asks_for_is_waited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, waited_s: float
) -> None:
    write_example_dataset(tmp_path / "data")
    refusals, pauses = [503], []
    monkeypatch.setattr(retry.time, "sleep", pauses.append)
    with served(tmp_path / "data") as service:
        service.retry_after = asked
        service.fault = lambda path, body: (refusals.pop(), b"{}") if refusals else (200, body)
        assert len(open_dataset(service.uri)) == 10
    assert pauses == [waited_s]


def test_connection_is_kept(tmp_path: Path) -> None:
    write_example_dataset(tmp_path / "data")
    with served(tmp_path / "data") as service:
        dataset = open_dataset(service.uri)
        assert [dataset[index].sample_id for index in range(10)] == list(range(10))
        assert (service.connections, len(service.requests)) == (1, 12)


@pytest.mark.parametrize("columns", [None, ["logits"]], ids=["whole", "by ranges"])
def test_next_part_is_fetched_while_one_is_read(tmp_path: Path, columns: list[str] | None) -> None:
    written = write_example_dataset(tmp_path / "data")
    with served(tmp_path / "data") as service:
        reading = iter(open_dataset(service.uri, columns=columns))
        assert next(reading).sample_id == 0
        eventually(lambda: any("/shards/1/data" in path for path in service.requests))
        assert not any("/shards/2/data" in path for path in service.requests), "one part ahead, no more"
        assert [sample.sample_id for sample in reading] == [sample.sample_id for sample in written[1:]]
        fetched = [path for path in service.requests if "/data?" in path]
        assert len(fetched) == len(set(fetched))


def test_parts_of_a_shuffled_order_are_fetched_before_they_are_read(tmp_path: Path) -> None:
    write_example_dataset(tmp_path / "data", info=example_dataset_info(samples=36, samples_per_part=2, layers=()))
    with served(tmp_path / "data") as service:
        dataset = open_dataset(service.uri)
        order = [index for (index,) in ShardSampler(dataset.shard_rows, batch_size=1)]
        soon = dataset.read_soon(order)
        assert next(soon) == order[0]
        block = {index // 2 for index in order[: 2 * BLOCK_SHARDS + 1]}
        eventually(lambda: parts_fetched(service) == block)
        assert [dataset[index].sample_id for index in soon] == order[1:]
        fetched = [path for path in service.requests if "/data?" in path]
        assert len(fetched) == len(set(fetched)) == len(dataset.shard_rows)


def test_parts_that_a_resumed_run_passes_are_not_fetched(tmp_path: Path) -> None:
    write_example_dataset(tmp_path / "data", info=example_dataset_info(samples=60, samples_per_part=1, layers=()))
    came, goes_on = threading.Event(), threading.Event()

    def slow(path: str, body: bytes) -> tuple[int, bytes]:
        if "/data?" in path:
            came.set()
            assert goes_on.wait(60)
        return 200, body

    with served(tmp_path / "data") as service:
        service.fault = slow
        soon = open_dataset(service.uri).read_soon(range(60))
        next(soon)
        assert came.wait(60)
        assert list(itertools.islice(soon, 39)) == list(range(1, 40))
        goes_on.set()
        eventually(lambda: 40 + BLOCK_SHARDS - 1 in parts_fetched(service))
        assert not parts_fetched(service) & set(range(1, 39))


def test_fault_met_ahead_is_the_readers_when_it_comes_there(tmp_path: Path) -> None:
    written = write_example_dataset(tmp_path / "data")
    away = [True]

    def fault(path: str, body: bytes) -> tuple[int, bytes]:
        if "/shards/1/data" in path and away:
            return 503, b"{}"
        return 200, _flipped(body) if "/shards/2/data" in path else body

    with served(tmp_path / "data") as service:
        service.fault = fault
        dataset = open_dataset(service.uri)
        with pytest.raises(TryAgain, match="HTTP 503"):
            list(dataset)
        reading = iter(dataset)
        assert [next(reading).sample_id for _ in range(4)] == [0, 1, 2, 3]
        eventually(lambda: sum("/shards/1/data" in path for path in service.requests) >= 3 * retry.ATTEMPTS)
        away.clear()
        assert_same_sample(next(reading), written[4])
        with pytest.raises(CorruptShard, match="fetched twice"):
            list(reading)


def test_reader_that_stops_stops_what_it_fetches_ahead(tmp_path: Path) -> None:
    write_example_dataset(tmp_path / "data")
    came, goes_on = threading.Event(), threading.Event()

    def slow(path: str, body: bytes) -> tuple[int, bytes]:
        if "/shards/1/data" in path:
            came.set()
            assert goes_on.wait(60)
        return 200, body

    with served(tmp_path / "data") as service:
        service.fault = slow
        reading = iter(open_dataset(service.uri))
        next(reading)
        assert came.wait(60)
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "fetch ahead")
        reading.close()
        goes_on.set()
        thread.join(60)
        assert not thread.is_alive()
    kept = list((tmp_path / "cache").glob("*/*.arrow"))
    assert len(kept) == 2, "rows and hidden states of the first part alone"


@pytest.mark.parametrize("length", [1000, 1_000_000])
def test_file_of_another_length_is_damage_that_verifying_names_and_passes(tmp_path: Path, length: int) -> None:
    write_example_dataset(tmp_path / "data")
    file = tmp_path / "data/shards/part-000001.arrow"
    file.write_bytes(file.read_bytes().ljust(length, b"\0")[:length])
    with served(tmp_path / "data") as service:
        with pytest.raises(CorruptShard, match=f"{length} bytes, committed with"):
            open_dataset(service.uri)[4]
        verdict = list(verify_dataset(service.uri))[-1]
    assert (verdict.parts, list(verdict.damaged)) == (3, [1])


def test_wrong_bytes_are_fetched_again_and_then_refused(tmp_path: Path) -> None:
    written = write_example_dataset(tmp_path / "data")
    with served(tmp_path / "data") as service:
        dataset = open_dataset(service.uri)
        flipped = [True]

        def once(path: str, body: bytes) -> tuple[int, bytes]:
            return 200, _flipped(body) if "/data?" in path and flipped and flipped.pop() else body

        service.fault = once
        assert_same_sample(dataset[0], written[0])
        service.fault = lambda path, body: (200, _flipped(body) if "/data?" in path else body)
        with pytest.raises(CorruptShard, match="fetched twice"):
            dataset[9]


def test_key_is_sent_and_its_lack_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_example_dataset(tmp_path / "data")
    with served(tmp_path / "data") as service:
        service.key = "sesame"
        with pytest.raises(UsageError, match="ARWKV_API_KEY"):
            open_dataset(service.uri)
        monkeypatch.setenv("ARWKV_API_KEY", "sesame")
        assert len(open_dataset(service.uri)) == 10


def test_key_is_not_sent_on_to_another_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_example_dataset(tmp_path / "data")
    monkeypatch.setenv("ARWKV_API_KEY", "sesame")
    with served(tmp_path / "data") as service, served(tmp_path / "data") as other:
        service.redirect_to = other.uri.removesuffix("/v1/datasets/example")
        assert len(open_dataset(service.uri)) == 10
    assert set(service.keys) == {"Bearer sesame"}
    assert set(other.keys) == {None}


@pytest.mark.parametrize("page", [b'{"items": [{}]}', b'{"items": 3}', b"[]", b"<html>"])
def test_pages_of_another_service_are_refused(tmp_path: Path, page: bytes) -> None:
    write_example_dataset(tmp_path / "data")
    with served(tmp_path / "data") as service:
        service.fault = lambda path, body: (200, page.ljust(len(body)) if "/shards?" in path else body)
        with pytest.raises(UsageError, match="the answer is not from a dataset service"):
            open_dataset(service.uri)


def test_unknown_name_is_not_found(tmp_path: Path) -> None:
    write_example_dataset(tmp_path / "data")
    with served(tmp_path / "data") as service, pytest.raises(NotFound, match="lists what is served"):
        open_dataset(service.uri.replace("example", "other"))


def test_cache_keeps_to_its_bound_and_evicts_the_longest_unused(tmp_path: Path) -> None:
    written = write_example_dataset(tmp_path / "data")
    sizes = [file.size_bytes for shard in open_dataset(tmp_path / "data").shards for file in shard.files.values()]
    with served(tmp_path / "data") as service:
        dataset = open_dataset(service.uri, max_cache_bytes=max(sizes) * 2)
        for read, sample in zip(dataset, written, strict=True):
            assert_same_sample(read, sample)
        kept = [path.stat().st_size for path in (tmp_path / "cache").glob("*/*.arrow")]
        assert 0 < sum(kept) <= max(sizes) * 2
        assert_same_sample(open_dataset(service.uri, max_cache_bytes=max(sizes) * 2)[0], written[0])


def test_damaged_copies_in_the_cache_are_fetched_again(tmp_path: Path) -> None:
    written = write_example_dataset(tmp_path / "data")
    with served(tmp_path / "data") as service:
        list(open_dataset(service.uri))
        copies = list((tmp_path / "cache").glob("*/*.arrow"))
        for copy in copies:
            copy.write_bytes(_flipped(copy.read_bytes()))
        service.requests.clear()
        for read, sample in zip(open_dataset(service.uri), written, strict=True):
            assert_same_sample(read, sample)
        assert len([path for path in service.requests if "/data?" in path]) == len(copies) == 6
        copies[0].write_bytes(_flipped(copies[0].read_bytes()))
        list(copy_dataset(service.uri, str(tmp_path / "copy")))
    assert [sample.sample_id for sample in open_dataset(tmp_path / "copy")] == list(range(10))


def test_verifying_looks_at_the_source_and_not_at_copies(tmp_path: Path) -> None:
    write_example_dataset(tmp_path / "data")
    with served(tmp_path / "data") as service:
        list(open_dataset(service.uri))
        damaged = tmp_path / "data/shards/part-000001.arrow"
        damaged.write_bytes(_flipped(damaged.read_bytes()))
        assert list(list(verify_dataset(service.uri, deep=True))[-1].damaged) == [1]
        (tmp_path / "data/shards/part-000002.hidden.arrow").unlink()
        assert list(list(verify_dataset(service.uri))[-1].damaged) == [1, 2]


def test_file_evicted_before_it_is_opened_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_example_dataset(tmp_path / "data")
    fetch, evictions = FileCache.fetch, [True] * 5

    def evicted(cache: FileCache, *arguments: Any) -> Path:
        path = fetch(cache, *arguments)
        if evictions:
            path.unlink(missing_ok=evictions.pop())
        return path

    monkeypatch.setattr(FileCache, "fetch", evicted)
    with served(tmp_path / "data") as service:
        assert_same_sample(open_dataset(service.uri)[0], written[0])


def test_interrupted_downloads_count_towards_the_bound(tmp_path: Path) -> None:
    write_example_dataset(tmp_path / "data")
    with served(tmp_path / "data") as service:
        dataset = open_dataset(service.uri, columns=["logits"], max_cache_bytes=100)
        for first in (0, 4, 8):
            service.fault = _cut_once_then_away()
            with pytest.raises(TryAgain):
                dataset[first]
        assert len(list((tmp_path / "cache").glob("*/*"))) == 1


@pytest.mark.parametrize(("asked", "limit"), [("1000", 1000), ("64G", 64 << 30), ("2 MiB", None), ("1.5G", None)])
def test_bound_of_the_cache_from_the_environment(
    asked: str, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARWKV_CACHE_BYTES", asked)
    if limit is None:
        with pytest.raises(UsageError, match="ARWKV_CACHE_BYTES="):
            FileCache.of(None, None)
    else:
        assert FileCache.of(None, None).max_bytes == limit
    assert FileCache.of(None, 0).max_bytes == 0


def _cut_once_then_away() -> Fault:
    answers = [True]

    def fault(path: str, body: bytes) -> tuple[int, bytes]:
        if "/data?" not in path:
            return 200, body
        return (200, body[:1000]) if answers and answers.pop() else (503, b"{}")

    return fault


def _flipped(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
