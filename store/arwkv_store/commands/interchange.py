"""`store import` and `store export`: from flags to the functions that do it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from arwkv_store.commands.config import ExportConfig, ImportConfig
from arwkv_store.commands.progress import followed
from arwkv_store.errors import UsageError
from arwkv_store.interchange.import_parquet import Import, Imported, import_dataset


def exported_files(config: ExportConfig) -> Iterator[Path]:
    """Write the files of an export; yields each path when it is complete."""
    if config.to == "parquet":
        from arwkv_store.interchange.export_parquet import export_parquet

        return export_parquet(config.uri, config.out, columns=config.columns or None)
    from arwkv_store.interchange.export_distillkit import export_distillkit

    if config.columns:
        raise UsageError(f"--columns {' '.join(config.columns)}: DistillKit's format has logits alone; leave it out")
    return export_distillkit(config.uri, config.out)


def import_with_progress(config: ImportConfig) -> Imported:
    """`import_dataset` to its end, with a bar."""
    asked = Import(
        source=config.source,
        out=config.out,
        kind=config.from_,
        teacher=config.teacher,
        columns=_columns(config.column),
        compression=config.compression,
        values=config.values,
        rule=config.position_rule,
        logits_codec=config.logits_codec,
        samples_per_part=config.samples_per_shard,
    )
    return followed("import", import_dataset(asked), lambda imported: f"{imported.parts} parts")


def _columns(words: Sequence[str]) -> dict[str, str]:
    for word in words:
        if "=" not in word:
            raise UsageError(f"--column {word}: write NAME=COLUMN, such as tokens=input_ids")
    return dict(word.split("=", 1) for word in words)
