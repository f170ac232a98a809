"""A manifest may come from anywhere: what it claims is checked before any of it is used."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from arwkv_store import CorruptShard, open_dataset
from arwkv_store.arrow import rows
from arwkv_store.dataset import writer
from arwkv_store.format.codecs import logits_exact
from arwkv_store.format.seal import sealed, unsealed
from store_examples import example_dataset_info, write_example_dataset
from store_server import served

Document = dict[str, Any]


def reseal(manifest: Path, change: Callable[[Document], object]) -> None:
    """Change a manifest as someone would who knows how it is sealed."""
    document = unsealed(manifest.read_bytes(), "manifest")
    change(document)
    manifest.write_bytes(sealed(document))


def test_served_manifest_cannot_name_a_file_outside_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARWKV_CACHE", str(tmp_path / "cache"))
    victim = tmp_path / "victim.arrow"
    victim.write_bytes(b"of another size")
    write_example_dataset(tmp_path / "evil", parts=[0])
    lie = {"sha256": str(victim.with_suffix(""))}
    reseal(tmp_path / "evil/shards/part-000000.json", lambda document: document["files"]["rows"].update(lie))
    with served(tmp_path / "evil") as service, pytest.raises(CorruptShard, match=r"files\.rows\.sha256"):
        open_dataset(service.uri)[0]
    assert victim.exists()


LIES: dict[str, Callable[[Document], object]] = {
    "no rows": lambda document: document.pop("rows"),
    "rows beyond any file": lambda document: document.update(rows=10**30),
    "negative rows": lambda document: document.update(rows=-1),
    "rows as text": lambda document: document.update(rows="4"),
    "tokens as text": lambda document: document.update(tokens="x"),
    "tokens as a fraction": lambda document: document.update(tokens=1.0),
    "another's file name": lambda document: document["files"]["rows"].update(name="../dataset.json"),
    "name of another content": lambda document: document["files"]["rows"].update(name=f"part-000000.{'0' * 32}.arrow"),
    "version 1 with checksums of columns": lambda document: document.update(format_version=1),
    "hash in capitals": lambda document: document["files"]["rows"].update(sha256="A" * 64),
    "hash with a line's end": lambda document: document["files"]["rows"].update(sha256="a" * 64 + "\n"),
    "checksum of another length": lambda document: document["files"]["rows"]["head"].update(xxh3="0" * 17),
    "negative length": lambda document: document["files"]["rows"]["head"].update(length=-8),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_lying_manifest_is_refused_by_name(tmp_path: Path, lie: Callable[[Document], object]) -> None:
    write_example_dataset(tmp_path, parts=[0])
    reseal(tmp_path / "shards/part-000000.json", lie)
    with pytest.raises(CorruptShard, match=r"part-000000\.json: ") as refusal:
        open_dataset(tmp_path)[0]
    assert "\n" not in str(refusal.value)


def test_only_names_as_the_writer_gives_them_are_parts(tmp_path: Path) -> None:
    write_example_dataset(tmp_path, parts=[0, 2])
    manifest = tmp_path / "shards/part-000002.json"
    for name in ("part-0000002.json", "part-00000\u0661.json", "part-2.json"):
        manifest.with_name(name).write_bytes(manifest.read_bytes())
    assert [shard.part for shard in open_dataset(tmp_path).shards] == [0, 2]


def test_schema_of_other_types_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_schema, plain_batch = writer.arrow_schema, rows._record_batch

    def wrong_schema(*arguments: Any) -> pa.Schema:
        schema = plain_schema(*arguments)
        return schema.set(schema.get_field_index("logits"), pa.field("logits", pa.int64()))

    def wrong_batch(schema: pa.Schema, samples: Any) -> pa.RecordBatch:
        at = schema.get_field_index("logits")
        batch = plain_batch(schema.set(at, pa.field("logits", pa.binary())), samples)
        return batch.set_column(at, schema.field(at), pa.array(range(batch.num_rows), pa.int64()))

    with monkeypatch.context() as patch:
        patch.setattr(writer, "arrow_schema", wrong_schema)
        patch.setattr(rows, "_record_batch", wrong_batch)
        write_example_dataset(tmp_path, info=example_dataset_info(layers=()), parts=[0])
    assert open_dataset(tmp_path, columns=[])[0].logits is None
    with pytest.raises(CorruptShard, match=r"part-000000\.arrow: schema: column logits is int64, expected binary"):
        open_dataset(tmp_path)[0]


def test_schema_without_a_column_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_schema, plain_batch = writer.arrow_schema, rows._record_batch
    lacking = pa.schema([])

    def without_source(*arguments: Any) -> pa.Schema:
        nonlocal lacking
        lacking = plain_schema(*arguments)
        return lacking.remove(lacking.get_field_index("source"))

    with monkeypatch.context() as patch:
        patch.setattr(writer, "arrow_schema", without_source)
        patch.setattr(rows, "_record_batch", lambda _, samples: plain_batch(lacking, samples).drop_columns(["source"]))
        write_example_dataset(tmp_path, info=example_dataset_info(layers=()), parts=[0])
    with pytest.raises(CorruptShard, match="schema: column source is not there once"):
        open_dataset(tmp_path)[0]


def test_iteration_never_takes_a_fault_for_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_example_dataset(tmp_path)

    def faulty(*arguments: Any) -> None:
        raise IndexError("in the midst of a sample")

    monkeypatch.setattr(logits_exact, "decode", faulty)
    with pytest.raises(IndexError, match="midst"):
        list(open_dataset(tmp_path))
