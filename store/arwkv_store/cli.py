"""`store`: look at datasets, verify them, and hand them to other tools."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from arwkv_store.commands.command_line import Command
from arwkv_store.commands.command_line import main as run_commands
from arwkv_store.commands.config import (
    CopyConfig,
    ExportConfig,
    GcConfig,
    ImportConfig,
    InfoConfig,
    LsConfig,
    NoteConfig,
    ReindexConfig,
    RmConfig,
    StatsConfig,
    VerifyConfig,
)


def ls(config: LsConfig) -> Mapping[str, Any]:
    """List a dataset's parts, or the datasets in a folder. Example: `store ls ./shards`."""
    from arwkv_store.commands.ls import list_datasets, list_parts
    from arwkv_store.commands.printing import print_datasets, print_parts

    datasets = list_datasets(config.uri)
    if datasets is not None:
        if not config.json:
            print_datasets(datasets)
        return {"datasets": datasets}
    parts = list_parts(config.uri)
    if not config.json:
        print_parts(parts)
    return {"uri": config.uri, "parts": parts}


def info(config: InfoConfig) -> Mapping[str, Any]:
    """Show what a dataset is: teacher, capture settings, corpus. Example: `store info ./shards`."""
    from arwkv_store.commands.printing import print_info
    from arwkv_store.dataset.reader import open_dataset

    dataset = open_dataset(config.uri)
    document = {
        **dataset.info.model_dump(mode="json"),
        "uri": config.uri,
        "committed": {"parts": len(dataset.shards), "samples": len(dataset), "tokens": dataset.tokens},
    }
    if not config.json:
        print_info(document)
    return document


def stats(config: StatsConfig) -> Mapping[str, Any]:
    """Show a dataset's statistics, or one part's. Example: `store stats ./shards --part 3`."""
    from arwkv_store.commands.ls import stats_of
    from arwkv_store.commands.printing import print_stats

    found = stats_of(config.uri, config.part)
    document = {**found.model_dump(mode="json"), "bytes_per_token": found.bytes_per_token}
    if not config.json:
        print_stats(found)
    return document


def verify(config: VerifyConfig) -> Mapping[str, Any]:
    """Compare every byte with its checksum; exit code 3 if any differs. Example: `store verify ./shards --deep`."""
    from arwkv_store.commands.printing import print_verdict
    from arwkv_store.commands.verify import verify_with_progress
    from arwkv_store.errors import CorruptShard, UnsupportedVersion

    verdict = verify_with_progress(config.uri, deep=config.deep, repair=config.repair)
    document = {"uri": config.uri, **dataclasses.asdict(verdict)}
    if not config.json:
        print_verdict(config.uri, verdict)
    if config.json and (verdict.standing or verdict.newer):
        print(json.dumps(document, indent=2))
    if verdict.standing:
        raise CorruptShard(
            f"{config.uri}: {len(verdict.standing)} of {verdict.parts} parts damaged: "
            f'{", ".join(map(str, verdict.standing))}; run "store verify --repair DIR", then the producer again'
        )
    if verdict.newer:
        raise UnsupportedVersion(
            f"{config.uri}: {len(verdict.newer)} of {verdict.parts} parts are of a format version this release does "
            f"not read: {', '.join(map(str, verdict.newer))}; verify them with the release that wrote them"
        )
    return document


def export(config: ExportConfig) -> Mapping[str, Any]:
    """Write a dataset in another format. Example: `store export ./shards --to parquet --out ./plain`."""
    from arwkv_store.commands.interchange import exported_files

    files = []
    for path in exported_files(config):
        files.append(str(path))
        if not config.json:
            print(path)
    return {"uri": config.uri, "files": files}


def import_(config: ImportConfig) -> Mapping[str, Any]:
    """Make a dataset from a capture of another tool. The same command continues."""
    from arwkv_store.commands.interchange import import_with_progress

    imported = import_with_progress(config)
    if not config.json:
        print(f"{config.out}: {imported.parts:,} parts, {imported.samples:,} samples, {imported.tokens:,} tokens")
        if imported.parts_present_before:
            print(f"  {imported.parts_present_before:,} parts were already there")
        for note in imported.notes:
            print(f"  {note}")
    return {"source": config.source, "out": config.out, **dataclasses.asdict(imported)}


def copy(config: CopyConfig) -> Mapping[str, Any]:
    """Copy and verify a dataset's committed parts. The same command continues."""
    from arwkv_store.commands.copy import copy_with_progress

    copied = copy_with_progress(config.uri, config.to)
    if not config.json:
        print(f"{config.to}: {copied.parts:,} parts copied, {copied.parts_present_before:,} were already there")
    return {"uri": config.uri, "to": config.to, **dataclasses.asdict(copied)}


def reindex(config: ReindexConfig) -> Mapping[str, Any]:
    """Rebuild the summary of a dataset's manifests, or a service's index of them. Example: `store reindex ./shards`."""
    from arwkv_store.commands.reindex import reindex

    answer = reindex(config.uri)
    if not config.json:
        print(f"{config.uri}: {answer['shards']:,} shards, {answer['tokens']:,} tokens indexed")
    return answer


def note(config: NoteConfig) -> Mapping[str, Any]:
    """Show the notes and tags of a dataset or run, or change them. Example: `store note ./shards --tag baseline`."""
    from arwkv_store.commands.noting import noted, print_notes

    notes = noted(config.uri, config.text, config.tag, config.untag)
    if not config.json:
        print_notes(config.uri, notes)
    return {"uri": config.uri, **notes.model_dump()}


def rm(config: RmConfig) -> Mapping[str, Any]:
    """Remove a dataset. Without --yes, only show what would be removed."""
    from arwkv_store.commands.removing import remove_dataset

    return remove_dataset(config.uri, yes=config.yes, quiet=config.json)


def gc(config: GcConfig) -> Mapping[str, Any]:
    """Remove files that no manifest names. Without --yes, only show them."""
    from arwkv_store.commands.removing import collect_garbage

    return collect_garbage(config.uri, config.older_hours, yes=config.yes, quiet=config.json)


def main() -> None:
    """Run the `store` command."""
    commands: dict[str, Command] = {
        "ls": ls,
        "info": info,
        "stats": stats,
        "verify": verify,
        "export": export,
        "import": import_,
        "copy": copy,
        "note": note,
        "reindex": reindex,
        "rm": rm,
        "gc": gc,
    }
    run_commands(
        "store",
        "Inspect, verify, copy and convert datasets of teacher outputs. Files of remote datasets are cached in the "
        "folder ARWKV_CACHE (~/.cache/arwkv), up to ARWKV_CACHE_BYTES (64G); the least recently used are evicted "
        "first.",
        commands,
    )
