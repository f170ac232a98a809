"""Datasets written by each version of the format, kept in the repository: every later release reads them to the bit.

They are never written anew. `expected.json` holds each sample's fields as dtype, shape and SHA-256 of the bytes.
"""

import hashlib
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from numpy.typing import NDArray

from arwkv_store import Sample, create_dataset, open_dataset
from arwkv_store.format.seal import sealed, unsealed
from store_examples import assert_same_sample, example_dataset_info, write_example_dataset

DATA = Path(__file__).parent / "data"
NAMES = sorted(str(path.parent.relative_to(DATA)) for path in DATA.glob("v*/*/dataset.json"))
OLD_NAMES = [name for name in NAMES if name.startswith("v1")]
EXACT_IDS = [200, 251, 228, 240]
EXACT_LOGPROBS = [-1.0442085266113281, -1.9748973846435547, -2.5850467681884766, -3.20489501953125]


def fingerprint(sample: Sample) -> dict[str, Any]:
    """What is compared of a sample."""
    arrays: dict[str, NDArray[Any] | None] = {
        "tokens": sample.tokens,
        "loss_mask": sample.loss_mask,
        "entropy": sample.entropy,
        "true_logprob": sample.true_logprob,
        **{f"hidden.{name}": states for name, states in sample.hidden.items()},
    }
    if sample.logits is not None:
        arrays |= {f"logits.{name}": value for name, value in vars(sample.logits).items()}
    return {
        "sample_id": sample.sample_id,
        "source": sample.source,
        **{name: _digest(array) for name, array in arrays.items() if array is not None},
    }


def _digest(array: NDArray[Any]) -> str:
    return f"{array.dtype}{list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()}"


def test_every_codec_of_version_1_is_kept() -> None:
    infos = [open_dataset(DATA / name).info.capture for name in OLD_NAMES]
    assert {info.logits_codec for info in infos} == {"exact", "compact", "sampled", "hybrid", "none"}
    assert {info.hidden_dtype for info in infos} == {"bf16", "fp8", "int8", "none"}


def test_wide_ids_and_high_planes_of_version_1_are_kept() -> None:
    cells = set()
    for path in DATA.glob("v1*/*/shards/part-??????.arrow"):
        with pa.memory_map(str(path)) as file:
            for cell in pa.ipc.open_file(file).read_all()["logits"].to_pylist():
                codec, flags, parameter = struct.unpack_from("<BBH", cell)
                cells.add((codec, flags, 0 if codec == 3 else parameter))
    exact, compact, sampled = 1, 2, 3
    wanted = {(exact, 1, 2), (exact, 2, 8), (compact, 1, 2), (compact, 1, 8), (sampled, 1, 0), (sampled, 2 | 4, 0)}
    assert wanted <= cells


@pytest.mark.parametrize("name", NAMES)
def test_each_version_reads_to_the_bit(name: str) -> None:
    expected = json.loads((DATA / name / "expected.json").read_text())
    assert [fingerprint(sample) for sample in open_dataset(DATA / name)] == expected


@pytest.mark.parametrize("name", NAMES)
def test_each_version_is_resumed(tmp_path: Path, name: str) -> None:
    shutil.copytree(DATA / name, tmp_path / name)
    info = open_dataset(tmp_path / name).info
    assert create_dataset(tmp_path / name, info.model_copy(update={"format_version": 2})).missing_parts() == []


def test_a_part_added_to_a_dataset_of_version_1_is_of_version_1(tmp_path: Path) -> None:
    """Whoever reads the dataset reads the new part too: one checksum a record batch, no member unknown to them."""
    old = example_dataset_info().model_copy(update={"format_version": 1})
    write_example_dataset(tmp_path, info=old, parts=[0])
    (added,) = write_example_dataset(tmp_path, parts=[2])[:1]
    document = unsealed((tmp_path / "shards/part-000002.json").read_bytes(), "manifest")
    assert document["format_version"] == 1
    for file in document["files"].values():
        content = (tmp_path / "shards" / file["name"]).read_bytes()
        for batch in file["batches"]:
            assert set(batch) == {"offset", "length", "xxh3", "rows"}
            message = content[batch["offset"] : batch["offset"] + batch["length"]]
            assert xxhash.xxh3_64_hexdigest(message) == batch["xxh3"]
    assert_same_sample(open_dataset(tmp_path)[4], added)


def test_a_footer_decides_nothing_that_is_read(tmp_path: Path) -> None:
    """The footer names blocks of its own; what is decoded are the bytes whose checksum was compared."""
    for name in ("v1/exact", "v2/exact"):
        shutil.copytree(DATA / name, tmp_path / name)
        manifest = tmp_path / name / "shards/part-000000.json"
        document = unsealed(manifest.read_bytes(), name)
        for file in document["files"].values():
            with open(manifest.with_name(file["name"]), "rb+") as opened:
                opened.seek(file["footer"]["offset"])
                opened.write(bytes(file["footer"]["length"]))
            file["footer"]["xxh3"] = xxhash.xxh3_64_hexdigest(bytes(file["footer"]["length"]))
        manifest.write_bytes(sealed(document))
        expected = json.loads((DATA / name / "expected.json").read_text())
        assert [fingerprint(sample) for sample in open_dataset(tmp_path / name)] == expected


def test_version_1_holds_these_very_numbers() -> None:
    logits = open_dataset(DATA / "v1" / "exact")[0].logits
    assert logits is not None
    np.testing.assert_array_equal(logits.ids[:4], EXACT_IDS)
    np.testing.assert_array_equal(logits.logprobs[:4], np.float32(EXACT_LOGPROBS))
