"""Hostile files whose hashes are right: each is refused before it can take memory."""

import os
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pytest
import zstandard

from arwkv_store import CorruptShard, Sample, create_dataset, open_dataset
from arwkv_store.arrow import arrow_file_writer, rows
from arwkv_store.dataset import writer
from arwkv_store.format import seal
from arwkv_store.format.codecs import frames, logits_exact
from arwkv_store.format.seal import sealed, unsealed
from store_examples import example_dataset_info, example_samples, write_example_dataset

HUGE = 256 << 20
LIMIT = 64 << 20


def _cell(packed_bytes: int, frame: bytes, tokens: int = 30, entries: int = 240) -> bytes:
    header = frames.HEADER.pack(logits_exact.CODEC_ID, 0, 0, tokens, entries, 0, packed_bytes, len(frame))
    return header + frame + bytes(-(len(header) + len(frame)) % 8)


def _frame(size: int, **settings: Any) -> bytes:
    return zstandard.ZstdCompressor(**settings).compress(bytes(size))


BOMBS: dict[str, Callable[[], bytes]] = {
    "frame larger than its cell says": lambda: _cell(1000, _frame(HUGE)),
    "cell larger than its tokens allow": lambda: _cell(HUGE, _frame(HUGE)),
    "frame that does not say its size": lambda: _cell(1000, _frame(HUGE, write_content_size=False)),
    "frame followed by another": lambda: _cell(1000, _frame(1000) + _frame(HUGE)),
    "frame that lies about its size": lambda: _cell(1000, _lying(_frame(HUGE), 1000)),
    "entries beyond any memory": lambda: _cell(1000, _frame(1000), entries=2**32 - 1),
    "cell shorter than its header": lambda: b"bomb",
    "header alone": lambda: _cell(0, b""),
}


def _lying(frame: bytes, size: int) -> bytes:
    """The frame with its declared content size (4 bytes after a 5-byte head) replaced."""
    assert zstandard.get_frame_parameters(frame).content_size == HUGE
    at = frame.index(struct.pack("<I", HUGE))
    return frame[:at] + struct.pack("<I", size) + frame[at + 4 :]


def _write(folder: Path, cell: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(logits_exact, "encode", lambda logits, limit: cell)
        write_example_dataset(folder, info=example_dataset_info(samples=1, layers=()), length=30)


READ = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from arwkv_store import CorruptShard, open_dataset
from process_memory import peak_bytes
before = peak_bytes()
for folder in sys.argv[1:]:
    try:
        open_dataset(folder)[0]
        print("read")
    except CorruptShard as error:
        print(error)
print(peak_bytes() - before)
"""


def _write_compressed_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset whose record batches are compressed by Arrow itself, with a source of 256 MiB in a few kilobytes."""
    plain = arrow_file_writer.write_arrow_file

    def compressed(file: IO[bytes], name: str, schema: pa.Schema, batches: Sequence[pa.RecordBatch], heavy: int) -> Any:
        def blown(batch: pa.RecordBatch) -> pa.RecordBatch:
            at = schema.names.index("source")
            return batch.set_column(at, schema.field(at), pa.array([" " * HUGE], pa.string()))

        options = pa.ipc.IpcWriteOptions(compression="zstd")
        new_file = pa.ipc.new_file

        with monkeypatch.context() as patch:
            patch.setattr(pa.ipc, "new_file", lambda stream, schema: new_file(stream, schema, options=options))
            return plain(file, name, schema, (blown(batch) for batch in batches), heavy)

    old = example_dataset_info(samples=1, layers=()).model_copy(update={"format_version": 1})
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_arrow_file", compressed)
        write_example_dataset(folder, info=old, length=30)


def _write_lying_length(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that claims 2^30 tokens, with a cell to match; its list of tokens has 30."""
    light_arrays, claimed = rows._light_arrays, 1 << 30

    def lying(samples: Sequence[Sample]) -> dict[str, pa.Array]:
        return {**light_arrays(samples), "n_tokens": pa.array([claimed] * len(samples), pa.int32())}

    with monkeypatch.context() as patch:
        patch.setattr(rows, "_light_arrays", lying)
        _write(folder, _cell(HUGE, _frame(HUGE), tokens=claimed), patch)


def _write_cell_of_a_wide_capture(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell of 240 entries that unpacks to 256 MiB, in a dataset that keeps 2^24 entries a position."""
    narrow = example_dataset_info(samples=1, layers=())
    info = example_dataset_info(samples=1, layers=(), top_k=1 << 24, vocab_size=1 << 24)
    with monkeypatch.context() as patch:
        patch.setattr(logits_exact, "encode", lambda logits, limit: _cell(HUGE, _frame(HUGE)))
        create_dataset(folder, info).write_shard(0, example_samples(1, info=narrow, length=30))


def _write_endless_manifest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_example_dataset(folder, info=example_dataset_info(samples=1))
    os.truncate(folder / "shards/part-000000.json", 1 << 30)


def _write_manifest_of_lists(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest whose every third byte is a list of its own."""
    write_example_dataset(folder, info=example_dataset_info(samples=1))
    manifest = folder / "shards/part-000000.json"
    document = unsealed(manifest.read_bytes(), "manifest")
    manifest.write_bytes(sealed({"lists": [[]] * ((seal.MAX_DOCUMENT_BYTES - 5000) // 3), **document}))


WHOLE_BOMBS: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    "compressed record batch": _write_compressed_batches,
    "sample that lies about its length": _write_lying_length,
    "cell larger than its entries allow": _write_cell_of_a_wide_capture,
    "manifest without end": _write_endless_manifest,
    "manifest of lists": _write_manifest_of_lists,
}


def test_bombs_are_refused_within_the_memory_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    for i, bomb in enumerate(BOMBS.values()):
        folders.append(tmp_path / str(i))
        _write(folders[-1], bomb(), monkeypatch)
    for name, write in WHOLE_BOMBS.items():
        folders.append(tmp_path / name)
        write(folders[-1], monkeypatch)
    command = [sys.executable, "-c", READ, str(Path(__file__).parents[1]), *map(str, folders)]
    *answers, grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for name, answer in zip([*BOMBS, *WHOLE_BOMBS], answers, strict=True):
        assert ("part-000000.json: " if "manifest" in name else "part-000000.arrow: record batch 0: ") in answer, name
    assert int(grown) <= LIMIT


def test_error_names_file_batch_sample_and_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, BOMBS["cell larger than its tokens allow"](), monkeypatch)
    with pytest.raises(CorruptShard, match=r"part-000000\.arrow: record batch 0: sample 0: logits: cell of .*--repair"):
        open_dataset(tmp_path)[0]
