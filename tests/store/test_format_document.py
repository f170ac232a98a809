"""A reader written from docs/format.md alone, without arwkv_store: the page says enough, and says it right."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
import zstandard
from numpy.typing import NDArray

from store_examples import example_dataset_info, write_example_dataset

Array = NDArray[Any]


def _sealed(path: Path) -> Any:
    raw = path.read_bytes()
    body, seal = raw[:-81], raw[-81:]
    assert seal == b',"self_hash":"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'
    return json.loads(raw)


def _rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("shards/part-*.json")):
        manifest = _sealed(path)
        assert manifest["format_version"] in (1, 2)
        assert manifest["dataset_hash"] == hashlib.sha256((folder / "dataset.json").read_bytes()).hexdigest()
        file = manifest["files"][kind]
        addresses = ["", f".{file['sha256'][:32]}"][: manifest["format_version"]]
        ending = ".arrow" if kind == "rows" else ".hidden.arrow"
        assert file["name"] in [f"{path.stem}{address}{ending}" for address in addresses]
        content = (path.parent / file["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size_bytes"], file["sha256"])
        end = 0
        for region in (file["head"], *file["batches"], file["footer"]):
            assert region["offset"] == end
            end += region["length"]
            for column in reversed(region.get("columns", ())):
                assert xxhash.xxh3_64_hexdigest(content[end - column["length"] : end]) == column["xxh3"]
                end -= column["length"]
            assert xxhash.xxh3_64_hexdigest(content[region["offset"] : end]) == region["xxh3"]
            end = region["offset"] + region["length"]
        assert end == len(content)
        rows += pa.ipc.open_file(pa.py_buffer(content)).read_all().to_pylist()
    return rows


class _Cell:
    def __init__(self, cell: bytes) -> None:
        self.codec, self.flags, self.parameter, self.T, self.entries, R, U, Z = struct.unpack_from("<BBHIIIII", cell)
        assert len(cell) % 8 == 0
        assert not any(cell[24 + R + Z :])
        self.sections = {"raw": cell[24 : 24 + R], "packed": b""}
        if U:
            self.sections["packed"] = zstandard.ZstdDecompressor().decompress(cell[24 + R : 24 + R + Z])
            assert len(self.sections["packed"]) == U

    def take(self, section: str, n: int, dtype: str = "u1") -> Array:
        size = n * np.dtype(dtype).itemsize
        plane, self.sections[section] = self.sections[section][:size], self.sections[section][size:]
        return np.frombuffer(plane, dtype)

    def counts(self) -> Array:
        return _joined([self.take("packed", self.T) for _ in range(4)])

    def ids(self, low: Array, id_bits: int) -> Array:
        ids = low.astype(np.int32) | self.take("packed", self.entries).astype(np.int32) << 8
        if id_bits == 2:
            quads = self.take("packed", -(-self.entries // 4))
            high = (quads[:, None] >> np.array([0, 2, 4, 6]) & 3).reshape(-1)[: self.entries]
            ids |= high.astype(np.int32) << 16
        elif id_bits == 8:
            ids |= self.take("packed", self.entries).astype(np.int32) << 16
        return ids


def _joined(planes: list[Array]) -> Array:
    return sum((plane.astype(np.uint32) << 8 * i for i, plane in enumerate(planes)), np.uint32(0))


def _sums(differences: Array, counts: Array) -> list[Array]:
    """Running sums, one array per position."""
    ends = np.cumsum(counts)
    return [np.cumsum(differences[end - n : end], dtype=np.uint32) for end, n in zip(ends, counts, strict=True)]


def _exact(cell: _Cell) -> dict[str, Array]:
    counts = cell.counts()
    some = counts[counts > 0]
    exponent = cell.take("packed", len(some))
    low = cell.take("raw", cell.entries)
    first = _joined([cell.take(section, len(some)) for section in ("raw", "raw", "packed", "packed")]).view(np.float32)
    tail = _joined([cell.take(section, cell.T) for section in ("raw", "raw", "packed", "packed")]).view(np.float32)
    ids = cell.ids(low, cell.parameter)
    on, values = exponent != 255, {}
    if on.any():
        n = int(some[on].sum())
        steps = _joined([cell.take("packed", n) for _ in range(2 if cell.flags & 1 else 1)])
        for position, sums in zip(np.flatnonzero(on), _sums(steps, some[on]), strict=True):
            values[position] = first[position] - sums.astype(np.float32) * np.float32(2.0 ** -int(exponent[position]))
    if cell.flags & 2:
        n = int(some[~on].sum())
        bits = _joined([cell.take(section, n) for section in ("raw", "raw", "packed", "packed")])
        for position, sums in zip(np.flatnonzero(~on), _sums(bits, some[~on]), strict=True):
            values[position] = (sums + first[position : position + 1].view(np.uint32)).view(np.float32)
    logprobs = np.concatenate([values[position] for position in range(len(some))])
    return {"counts": counts, "ids": ids, "logprobs": logprobs, "tail_logprob": tail}


def _compact(cell: _Cell) -> dict[str, Array]:
    tail = cell.take("raw", cell.T, "<f2").astype(np.float32)
    counts = cell.counts()
    some = counts[counts > 0]
    first = _joined([cell.take("packed", len(some)) for _ in range(2)])
    ids = cell.ids(cell.take("raw", cell.entries), cell.parameter)
    differences = _joined([cell.take("packed", cell.entries) for _ in range(2 if cell.flags & 1 else 1)])
    if cell.flags & 2:
        differences = (differences >> 1) ^ (np.uint32(0) - (differences & 1))
    codes = np.concatenate([sums + start for sums, start in zip(_sums(differences, some), first, strict=True)])
    finest, coarsest = 0.004, 0.25
    knee = 2 * np.log(coarsest / finest)
    knee_code = (2 / finest) * (1 - np.exp(-knee / 2))
    c = codes.astype(np.float64)
    fine = 2 * np.log1p(-np.minimum(c, knee_code) * finest / 2)
    logprobs = np.where(c < knee_code, fine, -(knee + (c - knee_code) * coarsest)).astype(np.float32)
    return {"counts": counts, "ids": ids, "logprobs": logprobs, "tail_logprob": tail}


def _sampled(cell: _Cell) -> dict[str, Array]:
    counts = cell.counts()
    id_bits = 2 if cell.flags & 1 else 8 if cell.flags & 2 else 0
    ids = cell.ids(cell.take("raw", cell.entries), id_bits)
    hits = _joined([cell.take("packed", cell.entries) for _ in range(2 if cell.flags & 4 else 1)]).astype(float) + 1
    tail = np.full(cell.T, -np.inf, np.float32)
    return {"counts": counts, "ids": ids, "logprobs": np.log(hits / cell.parameter).astype("f4"), "tail_logprob": tail}


def _raw(cell: _Cell) -> dict[str, Array]:
    counts, tail = cell.take("raw", cell.T, "<u4"), cell.take("raw", cell.T, "<f4")
    ids, logprobs = cell.take("raw", cell.entries, "<i4"), cell.take("raw", cell.entries, "<f4")
    return {"counts": counts, "ids": ids, "logprobs": logprobs, "tail_logprob": tail}


LOGITS = {1: _exact, 2: _compact, 3: _sampled, 8: _raw}


def _e4m3(codes: Array) -> Array:
    sign, exponent, mantissa = codes >> 7, (codes >> 3 & 15).astype(int), (codes & 7) / 8
    magnitude = np.where(exponent > 0, (1 + mantissa) * 2.0 ** (exponent - 7), mantissa * 2.0**-6)
    return np.where(sign == 1, -magnitude, magnitude).astype(np.float32)


def _hidden(cell: _Cell) -> Array:
    """[T, C] as float32."""
    T, C = cell.T, cell.entries
    if cell.codec == 16:
        low, high = cell.take("raw", T * C), cell.take("packed", T * C)
        return ((_joined([low, high])) << 16).view(np.float32).reshape(T, C)
    if cell.codec == 24:
        return (cell.take("raw", T * C, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(T, C)
    if cell.codec == 17:
        return _e4m3(cell.take("packed", T * C)).reshape(T, C) * cell.take("raw", T, "<f4")[:, None]
    assert (cell.codec, cell.parameter) == (18, 64)
    scale = cell.take("raw", T * -(-C // 64), "<f4").reshape(T, -1).repeat(64, axis=1)[:, :C]
    return cell.take("packed", T * C, "i1").reshape(T, C) * scale


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "exact": ({}, "float32"),
    "exact, bf16 head": ({"top_k": 64}, "bfloat16"),
    "exact, adaptive": ({"logits": "adaptive", "top_p": 0.8}, "float32"),
    "large vocabulary": ({"vocab_size": 70_000}, "bfloat16"),
    "compact": ({"logits_codec": "compact", "hidden_dtype": "fp8"}, "float32"),
    "hybrid": ({"logits": "hybrid", "draws": 50, "logits_codec": "hybrid", "hidden_dtype": "int8"}, "float32"),
    "sampled": ({"logits": "sampled", "top_k": None, "draws": 300, "logits_codec": "sampled"}, "float32"),
    "none": ({"logits_codec": "none", "hidden_dtype": "none"}, "float32"),
}


@pytest.mark.parametrize(("capture", "head_dtype"), CASES.values(), ids=CASES)
def test_reader_made_from_the_document_reads_what_ours_reads(
    tmp_path: Path, capture: dict[str, Any], head_dtype: str
) -> None:
    from arwkv_store import open_dataset

    info = example_dataset_info(samples=3, samples_per_part=2, **capture)
    write_example_dataset(tmp_path, info=info, head_dtype=head_dtype)
    ours = open_dataset(tmp_path)
    rows, hidden_rows = _rows(tmp_path, "rows"), _rows(tmp_path, "hidden")
    for row, hidden_row, sample in zip(rows, hidden_rows, ours, strict=True):
        assert (row["sample_id"], row["tokens"]) == (sample.sample_id, sample.tokens.tolist())
        cell = _Cell(row["logits"])
        read = LOGITS[cell.codec](cell)
        assert cell.sections == {"raw": b"", "packed": b""}
        assert sample.logits is not None
        for name, values in read.items():
            np.testing.assert_array_equal(values, getattr(sample.logits, name), err_msg=name)
        for layer in (0, 1):
            cell = _Cell(hidden_row[f"hidden.attn.00{layer}"])
            # Our reader rounds to bf16, whose relative step is 2^-8.
            theirs = sample.hidden[f"attn.{layer}"].astype(np.float32)
            np.testing.assert_allclose(_hidden(cell), theirs, rtol=2.0**-8)
            assert cell.sections == {"raw": b"", "packed": b""}
        _assert_token_stats(_Cell(row["token_stats"]), sample)


def _assert_token_stats(cell: _Cell, sample: Any) -> None:
    planes = {
        section: [cell.take(section, n) for n in (cell.T, cell.T, cell.entries, cell.entries)]
        for section in ("raw", "packed")
    }
    entropy = _joined([*planes["raw"][:2], *planes["packed"][:2]]).view(np.float32)
    true_logprob = _joined([*planes["raw"][2:], *planes["packed"][2:]]).view(np.float32)
    np.testing.assert_array_equal(entropy, sample.entropy)
    np.testing.assert_array_equal(true_logprob, sample.true_logprob)
