"""Captures of others become a dataset: a first reading counts its samples, a second one writes the parts."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from arwkv_store.dataset.writer import create_dataset
from arwkv_store.errors import UsageError
from arwkv_store.format.layout import TOKENIZER_FILES
from arwkv_store.format.sample import Sample
from arwkv_store.format.schema import CaptureInfo, CorpusInfo, DatasetInfo
from arwkv_store.interchange.entries import Derived, require_rule
from arwkv_store.interchange.export_parquet import EXPORTED
from arwkv_store.interchange.parquet_files import ParquetFiles, list_of, nested_list_of
from arwkv_store.interchange.rows import Rows, rows_of
from arwkv_store.interchange.teacher_files import TeacherFiles, teacher_files

SHARD_TARGET_BYTES = 256 << 20
FEWEST_SAMPLES, MOST_SAMPLES = 8, 4096


@dataclass(frozen=True)
class Import:
    """What to import, and how to read it."""

    source: str
    out: str
    kind: str
    """`parquet` or `distillkit`."""
    teacher: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    compression: Path | None = None
    values: str = "logprobs"
    rule: str = "next-token"
    logits_codec: str = "exact"
    samples_per_part: int = 0


@dataclass
class Imported:
    """What an import has done so far."""

    parts_present_before: int
    notes: list[str]
    """What the source lacks, and what became of it."""
    parts: int = 0
    samples: int = 0
    tokens: int = 0
    size_bytes: int = 0


@dataclass(frozen=True)
class _Survey:
    """What a first reading of the light columns says."""

    tokens: int
    longest: int
    most_entries: int
    fingerprint: str


def import_dataset(asked: Import) -> Iterator[Imported]:
    """Write the parts that `asked.out` lacks; yields after each. The same call continues an interrupted import.

    Raises UsageError for columns, values or settings that do not fit, NotFound, CorruptShard for a Parquet file that
    cannot be read, ConfigurationDiffers if `out` holds another dataset, TryAgain.
    """
    files = ParquetFiles(asked.source)
    exported = _exported(files)
    rows = _rows(asked, files, exported)
    survey = _survey(rows)
    known = _known_teacher(asked, files, exported)
    info = _info(asked, rows, survey, known, exported)
    writer = create_dataset(asked.out, info)
    for name, content in known.beside.items():
        writer.put_beside(name, content)
    missing = set(writer.missing_parts())
    derived, done = Derived(), Imported(info.corpus.parts - len(missing), _notes(rows, exported))
    for part, samples in _parts(rows, missing, info.corpus.samples_per_part, derived):
        require_rule(derived, asked.rule, files.source)
        manifest = writer.write_shard(part, samples)
        done.parts += 1
        done.samples += len(samples)
        done.tokens += manifest.tokens
        done.size_bytes += manifest.size_bytes
        yield done
    if derived.normalized:
        done.notes.append(
            f"the log-probabilities of {derived.normalized:,} of {derived.positions:,} positions summed to more than 1 "
            f"(at most {derived.largest_mass:.4f}) and were divided by their sum"
        )
    yield done


def _exported(files: ParquetFiles) -> DatasetInfo | None:
    """The dataset that `store export` wrote these files from, if it did."""
    raw = (files.schema.metadata or {}).get(EXPORTED)
    return None if raw is None else DatasetInfo.from_bytes(raw, f"{files.source}: metadata {EXPORTED.decode()}")


def _rows(asked: Import, files: ParquetFiles, exported: DatasetInfo | None) -> Rows:
    hidden = () if exported is None else exported.capture.hidden_names()
    columns = exported.capture.hidden_columns() if exported is not None else ()
    present = tuple(name for name, column in zip(hidden, columns, strict=True) if column in files.schema.names)
    return rows_of(
        files,
        asked.kind,
        renamed=asked.columns,
        compression=asked.compression,
        values=asked.values,
        rule=asked.rule,
        hidden=present,
        own=exported is not None and asked.kind == "parquet",
    )


def _survey(rows: Rows) -> _Survey:
    tokens_column, ids_column = rows.names["tokens"], rows.names.get("ids")
    count = rows.decode is not None and rows.most_entries is None and ids_column is not None
    columns = [tokens_column, *([ids_column] if count and ids_column else [])]
    digest = hashlib.sha256(rows.files.layout().encode())
    tokens = longest = 0
    most = rows.most_entries or 0
    for first, batch in rows.files.batches(columns):
        for at in range(batch.num_rows):
            where = f"{rows.files.source}: row {first + at}"
            ids = list_of(batch.column(0)[at], where).astype("<i4")
            digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
            tokens, longest = tokens + len(ids), max(longest, len(ids))
            if count:
                most = max(most, int(nested_list_of(batch.column(1)[at], where)[0].max(initial=0)))
    return _Survey(tokens, longest, most, "sha256:" + digest.hexdigest())


def _known_teacher(asked: Import, files: ParquetFiles, exported: DatasetInfo | None) -> TeacherFiles:
    if asked.teacher is not None:
        return teacher_files(asked.teacher)
    if exported is None:
        raise UsageError(
            f"{asked.source}: the files do not say which teacher made them; name its folder or Hub name with --teacher "
            "(config.json and tokenizer.json are read)"
        )
    found = {name: files.beside(name) for name in TOKENIZER_FILES}
    beside = {name: content for name, content in found.items() if content is not None}
    return TeacherFiles(exported.teacher, exported.tokenizer, exported.vocab_size_padded, beside)


def _info(asked: Import, rows: Rows, survey: _Survey, known: TeacherFiles, exported: DatasetInfo | None) -> DatasetInfo:
    capture = _foreign_capture(asked, survey) if exported is None else _exported_capture(rows, survey, exported.capture)
    per_part = asked.samples_per_part or _samples_per_part(capture, known.teacher.hidden_size)
    description = f"{asked.source}: " + "; ".join(_notes(rows, exported)) if exported is None else asked.source
    return DatasetInfo(
        teacher=known.teacher,
        tokenizer=known.tokenizer,
        vocab_size_padded=known.vocab_size_padded,
        capture=capture,
        corpus=CorpusInfo(
            fingerprint=survey.fingerprint,
            samples=rows.files.rows,
            tokens=survey.tokens,
            samples_per_part=per_part,
            parts=-(-rows.files.rows // per_part),
            description=description,
        ),
        command=f"store import --from {asked.kind}",
        versions={"arwkv": _version()},
        created_by=f"arwkv store import, {asked.kind}",
    )


def _foreign_capture(asked: Import, survey: _Survey) -> CaptureInfo:
    return CaptureInfo.model_validate(
        {
            "logits": "top-k",
            "top_k": survey.most_entries or None,
            "max_length": survey.longest,
            "logits_codec": asked.logits_codec,
        }
    )


def _exported_capture(rows: Rows, survey: _Survey, capture: CaptureInfo) -> CaptureInfo:
    """The exported dataset's settings, without columns that were not exported; lossy states are not rounded again."""
    changes: dict[str, object] = {"max_length": survey.longest}
    if rows.decode is None:
        changes |= {"logits": "none", "top_k": None, "top_p": None, "samples": None, "logits_codec": "exact"}
    layers = tuple(int(name.split(".")[1]) for name in rows.hidden if "." in name)
    changes |= {"layers": layers, "hidden_states": capture.hidden_states if rows.hidden else "none"}
    if capture.hidden_dtype in ("fp8", "int8"):
        changes["hidden_dtype"] = "bf16"
    return capture.model_copy(update=changes)


def _samples_per_part(capture: CaptureInfo, width: int) -> int:
    """As many of the longest sample as keep a part near SHARD_TARGET_BYTES."""
    token_bytes = 14 + 6 * (capture.top_k or capture.samples or 0) + 2 * width * len(capture.hidden_columns())
    return int(np.clip(SHARD_TARGET_BYTES // (token_bytes * capture.max_length), FEWEST_SAMPLES, MOST_SAMPLES))


def _notes(rows: Rows, exported: DatasetInfo | None) -> list[str]:
    if exported is not None and rows.own:
        return []
    notes = ["entropy and the true token's log-probability are absent"]
    if rows.values == "logits":
        notes.append("the values are logits: normalized over the kept entries, no tail mass")
    else:
        notes.append("tail mass is derived: 1 minus the sum of the kept probabilities")
    if not {"loss_mask", "labels"} & rows.names.keys():
        notes.append("every token counts in the loss")
    return notes


def _parts(rows: Rows, missing: set[int], per_part: int, derived: Derived) -> Iterator[tuple[int, list[Sample]]]:
    """Each missing part and its samples."""

    def wanted(some: range) -> bool:
        return any(part in missing for part in range(some.start // per_part, (some.stop - 1) // per_part + 1))

    samples: list[Sample] = []
    for first, batch in rows.files.batches(rows.columns, wanted):
        for at in range(batch.num_rows):
            part = (first + at) // per_part
            if part not in missing:
                continue
            row = {name: batch.column(place)[at] for place, name in enumerate(batch.schema.names)}
            samples.append(rows.sample(first + at, row, derived))
            if first + at + 1 == min((part + 1) * per_part, rows.files.rows):
                yield part, samples
                samples = []


def _version() -> str:
    try:
        return version("arwkv")
    except PackageNotFoundError:
        return "none"
