"""Reading over HTTP: complete, verified, and patient with a bad line."""

import multiprocessing
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from arwkv_store import CorruptShard, NotFound, TryAgain, UsageError, open_dataset, reader, retry
from store_examples import assert_same_sample, example_dataset_info, read_sample_id, write_example_dataset
from store_server import served


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


def _flipped(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
