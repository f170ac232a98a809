"""One layer of many costs about its own bytes: of checksums, and over a network of requests."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import fsspec
import pytest

from arwkv_store import CorruptShard, Sample, open_dataset
from arwkv_store.arrow import arrow_file, rows
from arwkv_store.format.manifest import Region
from arwkv_store.places.object_folder import ObjectFolder
from store_examples import assert_same_array, example_dataset_info, write_example_dataset
from store_server import served

LAYERS, COLUMN, NAME = 8, "hidden.attn.005", "attn.5"
OVERHEAD_BYTES = 24 << 10
"""Schema, metadata and row numbers of the hidden file."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    """One part of three record batches; a layer's cells are about 0.4 MB of 3."""
    folder = tmp_path_factory.mktemp("dataset")
    info = example_dataset_info(samples=16, samples_per_part=16, layers=range(LAYERS), hidden_size=256)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "TARGET_BATCH_BYTES", 1 << 20)
        samples = write_example_dataset(folder, info=info, length=64)
    assert len(open_dataset(folder).shards[0].files["hidden"].batches) >= 3
    return folder, samples


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each region of a hidden file that is compared with its checksum."""
    compared: list[int] = []
    checksum = arrow_file.ArrowFile._checksum

    def counted(file: arrow_file.ArrowFile, region: Region) -> str:
        if file.info.name.endswith("hidden.arrow"):
            compared.append(region.length)
        return checksum(file, region)

    monkeypatch.setattr(arrow_file.ArrowFile, "_checksum", counted)
    return compared


def own_bytes(folder: Path) -> int:
    return open_dataset(folder).shards[0].stats.bytes_by_column[COLUMN]


def read_column(uri: str | Path, expected: list[Sample], cache: Path | None = None) -> None:
    dataset = open_dataset(uri, columns=[COLUMN], cache_folder=cache)
    for read, sample in zip(dataset, expected, strict=True):
        assert set(read.hidden) == {NAME}
        assert_same_array(read.hidden[NAME], sample.hidden[NAME])


def test_one_layer_of_a_folder_hashes_its_own_bytes(written: tuple[Path, list[Sample]], hashed: list[int]) -> None:
    folder, samples = written
    read_column(folder, samples)
    own = own_bytes(folder)
    assert own <= sum(hashed) <= own + OVERHEAD_BYTES


def test_one_layer_over_http_fetches_its_own_bytes(written: tuple[Path, list[Sample]], tmp_path: Path) -> None:
    folder, samples = written
    sent: list[int] = []
    with served(folder) as service:

        def counted(path: str, body: bytes) -> tuple[int, bytes]:
            sent.append(len(body) if "file=hidden" in path else 0)
            return 200, body

        service.fault = counted
        read_column(service.uri, samples, tmp_path)
        own = own_bytes(folder)
        assert own <= sum(sent) <= own + OVERHEAD_BYTES
        before = sum(sent)
        read_column(service.uri, samples, tmp_path)
        assert sum(sent) == before, "what was fetched is kept"
        kept = [path.stat() for path in tmp_path.rglob("*.ranged")]
        assert kept
        assert all(512 * status.st_blocks < status.st_size // 2 for status in kept)


def test_one_layer_from_an_object_store_fetches_its_own_bytes(
    written: tuple[Path, list[Sample]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, samples = written
    fsspec.filesystem("memory").put(f"{folder}/", "/columns", recursive=True)
    fetched: list[int] = []
    ranges = ObjectFolder.ranges

    def counted(place: ObjectFolder, name: str, starts: Sequence[int], ends: Sequence[int]) -> Iterator[bytes]:
        for content in ranges(place, name, starts, ends):
            fetched.append(len(content) if name.endswith("hidden.arrow") else 0)
            yield content

    monkeypatch.setattr(ObjectFolder, "ranges", counted)
    read_column("memory://columns", samples, tmp_path)
    own = own_bytes(folder)
    assert own <= sum(fetched) <= own + OVERHEAD_BYTES


def test_one_layer_from_a_server_without_ranges(written: tuple[Path, list[Sample]], tmp_path: Path) -> None:
    folder, samples = written
    with served(folder) as service:
        service.ignore_range = True
        read_column(service.uri, samples, tmp_path)


def test_all_layers_are_fetched_as_one_file(written: tuple[Path, list[Sample]], tmp_path: Path) -> None:
    folder, _ = written
    with served(folder) as service:
        list(open_dataset(service.uri, columns=["hidden"], cache_folder=tmp_path))
        assert len([path for path in service.requests if "file=hidden" in path]) == 1


def test_damaged_layer_is_refused_and_a_damaged_copy_is_fetched_again(
    written: tuple[Path, list[Sample]], tmp_path: Path
) -> None:
    folder, samples = written
    with served(folder) as service:
        read_column(service.uri, samples, tmp_path)
        for kept in tmp_path.rglob("*.ranged"):
            kept.write_bytes(bytes(kept.stat().st_size))
        read_column(service.uri, samples, tmp_path)
        for kept in tmp_path.rglob("*.ranged"):
            kept.unlink()
        service.fault = lambda path, body: (200, bytes(len(body)) if "file=hidden" in path else body)
        with pytest.raises(CorruptShard, match=r"schema: checksum"):
            read_column(service.uri, samples, tmp_path)


def test_a_layer_that_is_not_asked_for_may_be_damaged(written: tuple[Path, list[Sample]], tmp_path: Path) -> None:
    folder, samples = written
    copy = tmp_path / "copy"
    fsspec.filesystem("file").put(f"{folder}/", str(copy), recursive=True)
    batch = open_dataset(folder).shards[0].files["hidden"].batches[0]
    with open(copy / "shards/part-000000.hidden.arrow", "rb+") as file:
        file.seek(batch.column_regions[2].offset + 100)
        file.write(b"damaged")
    read_column(copy, samples)
    with pytest.raises(CorruptShard, match="record batch 0: checksum"):
        list(open_dataset(copy, columns=["hidden.attn.002"]))
