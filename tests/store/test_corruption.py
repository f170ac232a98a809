"""No damaged byte is ever handed on: each fault is a CorruptShard that names the file."""

import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from arwkv_store import CorruptShard, NotFound, Sample, UnsupportedVersion, open_dataset
from arwkv_store.arrow import rows
from arwkv_store.format.seal import sealed, unsealed
from process_memory import forget_peak, peak_bytes
from store_examples import assert_same_sample, example_dataset_info, write_example_dataset

FEW, MANY_FLIPS, MANY_CUTS = 200, 10_000, 1_000


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    """A dataset whose files hold two record batches each."""
    folder = tmp_path_factory.mktemp("dataset")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "TARGET_BATCH_BYTES", 4_000)
        samples = write_example_dataset(folder, info=example_dataset_info(samples=4))
    assert {len(file.batches) for file in open_dataset(folder).shards[0].files.values()} == {2}
    return folder, samples


def _read_all(folder: Path, expected: list[Sample]) -> None:
    dataset = open_dataset(folder)
    assert len(dataset) == len(expected)
    for read, sample in zip(dataset, expected, strict=True):
        assert_same_sample(read, sample)


def _faults(folder: Path, copy: Path, seed: int) -> Iterator[tuple[Path, random.Random]]:
    chance = random.Random(seed)
    shutil.copytree(folder, copy)
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    while True:
        yield chance.choice(files), chance


@pytest.mark.parametrize("flips", [3 * FEW, pytest.param(MANY_FLIPS, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_refused_by_name(written: tuple[Path, list[Sample]], tmp_path: Path, flips: int) -> None:
    folder, expected = written
    faults = _faults(folder, tmp_path / "copy", 0)
    _read_all(folder, expected)
    before = forget_peak()
    for _ in range(flips):
        path, chance = next(faults)
        content = bytearray(path.read_bytes())
        at = chance.randrange(len(content))
        content[at] ^= 1 << chance.randrange(8)
        _assert_refused(path, bytes(content), tmp_path / "copy", expected, _region(path, at))
    _read_all(tmp_path / "copy", expected)
    assert peak_bytes() - before <= 64 << 20


@pytest.mark.parametrize("cuts", [FEW, pytest.param(MANY_CUTS, marks=pytest.mark.slow)])
def test_every_truncation_is_refused_by_name(written: tuple[Path, list[Sample]], tmp_path: Path, cuts: int) -> None:
    folder, expected = written
    faults = _faults(folder, tmp_path / "copy", 1)
    for _ in range(cuts):
        path, chance = next(faults)
        content = path.read_bytes()
        _assert_refused(path, content[: chance.randrange(len(content))], tmp_path / "copy", expected)


def test_zeroed_pages_are_refused_by_name(written: tuple[Path, list[Sample]], tmp_path: Path) -> None:
    folder, expected = written
    faults = _faults(folder, tmp_path / "copy", 2)
    for _ in range(FEW):
        path, chance = next(faults)
        content = bytearray(path.read_bytes())
        first = chance.randrange(len(content))
        name = _region(path, first)
        zeros = min(512, len(content) - first)
        if any(content[first : first + zeros]):
            content[first : first + zeros] = bytes(zeros)
            # Zeros that reach into two regions are found in the one that is read first.
            name = name if name == _region(path, first + zeros - 1) else ""
            _assert_refused(path, bytes(content), tmp_path / "copy", expected, name)


def _region(path: Path, at: int) -> str:
    """What the refusal of a damaged byte of a data file names beside the file."""
    if path.suffix != ".arrow":
        return ""
    part, kind = path.name.split(".")[0], "hidden" if path.name.endswith(".hidden.arrow") else "rows"
    file = unsealed(path.with_name(f"{part}.json").read_bytes(), part)["files"][kind]
    batch = next((i for i, region in enumerate(file["batches"]) if at < region["offset"] + region["length"]), None)
    return "schema" if at < file["head"]["length"] else "footer" if batch is None else f"record batch {batch}"


def _assert_refused(path: Path, content: bytes, dataset: Path, expected: list[Sample], named: str = "") -> None:
    before = path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(CorruptShard) as refusal:
        _read_all(dataset, expected)
    path.write_bytes(before)
    # A replaced dataset.json is noticed where its hash is compared: at a manifest.
    assert path.name in str(refusal.value) or path.name == "dataset.json"
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_missing_data_file_is_refused(written: tuple[Path, list[Sample]], tmp_path: Path) -> None:
    shutil.copytree(written[0], tmp_path / "copy")
    (tmp_path / "copy/shards/part-000000.arrow").unlink()
    with pytest.raises(CorruptShard, match=r"part-000000\.arrow: missing"):
        open_dataset(tmp_path / "copy")[0]


CUT = """
import os, sys
from pathlib import Path
from arwkv_store import CorruptShard, open_dataset
dataset = open_dataset(sys.argv[1])
held = dataset[0]
print("part-" in Path("/proc/self/maps").read_text())
for file in Path(sys.argv[1], "shards").glob("*.arrow"):
    os.truncate(file, int(sys.argv[2]))
print(held.logits.logprobs.sum() < 0, [float(states.sum()) for states in held.hidden.values()])
for index in range(40):
    try:
        dataset[index]
    except CorruptShard as error:
        print(error)
"""


@pytest.mark.parametrize("left", [0, 4096])
@pytest.mark.parametrize("codec", ["exact", "none"])
def test_file_cut_while_it_is_open_does_not_end_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int, codec: str
) -> None:
    """Nothing is mapped: what was read before stays, and what is read then is refused by name."""
    monkeypatch.setattr(rows, "TARGET_BATCH_BYTES", 20_000)
    info = example_dataset_info(samples=40, samples_per_part=40, top_k=64, logits_codec=codec)
    write_example_dataset(tmp_path, info=info, length=60)
    command = [sys.executable, "-c", CUT, str(tmp_path), str(left)]
    mapped, held, *refused = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert mapped == "False"
    assert held.startswith("True [")
    assert len(refused) == 40
    assert all(
        re.search(rf"part-000000\S*arrow: truncated to {left} bytes while it was open", line) for line in refused
    )


def test_manifest_of_another_dataset_is_refused(written: tuple[Path, list[Sample]], tmp_path: Path) -> None:
    shutil.copytree(written[0], tmp_path / "copy")
    (tmp_path / "copy/dataset.json").write_bytes(example_dataset_info(top_k=4).to_bytes())
    with pytest.raises(CorruptShard, match=r"part-000000\.json: is of part 0 of dataset"):
        open_dataset(tmp_path / "copy")


@pytest.mark.parametrize("name", ["dataset.json", "shards/part-000000.json"])
def test_unknown_version_is_refused_naming_both(written: tuple[Path, list[Sample]], tmp_path: Path, name: str) -> None:
    shutil.copytree(written[0], tmp_path / "copy")
    path = tmp_path / "copy" / name
    document = unsealed(path.read_bytes(), name)
    path.write_bytes(sealed({**document, "format_version": 7}))
    with pytest.raises(UnsupportedVersion, match="format version 7, this release reads versions 1 and 2"):
        open_dataset(tmp_path / "copy")


def test_folder_without_a_dataset_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no dataset\.json there"):
        open_dataset(tmp_path)


def test_unverified_reading_is_explicit(written: tuple[Path, list[Sample]], tmp_path: Path) -> None:
    shutil.copytree(written[0], tmp_path / "copy")
    path = tmp_path / "copy/shards/part-000000.arrow"
    content = path.read_bytes()
    at = content.index(b"document-1")
    path.write_bytes(content[:at] + b"d0cument-1" + content[at + 10 :])
    with pytest.raises(CorruptShard, match="record batch 0: checksum"):
        open_dataset(tmp_path / "copy")[1]
    assert open_dataset(tmp_path / "copy", verify=False)[1].source == "d0cument-1"
