"""Making a dataset: identity first, then parts in any order, from any number of processes."""

import contextlib
import hashlib
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from arwkv_store.columns import heavy_columns, require_captured
from arwkv_store.commit import publish, remove_abandoned, storage_faults, temporary_file, write_once
from arwkv_store.errors import UsageError
from arwkv_store.manifest import FileInfo, ShardManifest, data_file_name, manifest_name
from arwkv_store.rows import arrow_schema, record_batches
from arwkv_store.sample import Sample, validate_sample
from arwkv_store.schema import DatasetInfo, require_same
from arwkv_store.shard_file import write_arrow_file
from arwkv_store.stats import ShardStats, sample_stats
from arwkv_store.tally import Tally

DATASET_FILE = "dataset.json"
SHARDS_FOLDER = "shards"
_MANIFEST_NAME = re.compile(r"part-(\d{6,})\.json")


def create_dataset(uri: str | Path, info: DatasetInfo) -> "Writer":
    """Start or resume the dataset in a local folder.

    Writes dataset.json when there is none. Raises ConfigurationDiffers, naming each differing field, when the folder
    holds a dataset of another identity; UsageError for a URI that cannot be written; TryAgain when the disk is full.
    """
    if "://" in str(uri):
        raise UsageError(f"{uri}: datasets are made in a local folder; copy the finished folder there")
    heavy_columns(info)
    folder = Path(uri)
    path = folder / DATASET_FILE
    with storage_faults(str(folder)):
        (folder / SHARDS_FOLDER).mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder)
        remove_abandoned(folder / SHARDS_FOLDER)
        if not path.exists():
            write_once(path, info.to_bytes())
        raw = path.read_bytes()
    on_disk = DatasetInfo.from_bytes(raw, str(path))
    require_same(on_disk, info, str(path))
    return Writer(folder, on_disk, hashlib.sha256(raw).hexdigest())


class Writer:
    """Writes parts of one dataset. Safe to use from many processes at once: a part's first commit wins."""

    def __init__(self, folder: Path, info: DatasetInfo, dataset_hash: str) -> None:
        self.info = info
        """The identity on disk."""
        self._folder, self._dataset_hash = folder, dataset_hash

    def missing_parts(self) -> list[int]:
        """Parts that have no manifest yet, in order."""
        present = committed_parts(self._folder / SHARDS_FOLDER)
        return [part for part in range(self.info.corpus.parts) if part not in present]

    def write_shard(self, part: int, samples: Sequence[Sample]) -> ShardManifest:
        """Commit a part and return its manifest; where another process was first, return the one that counts.

        Raises UsageError for samples that do not fit the dataset (nothing is written), TryAgain when the disk fails.
        """
        self._require_fitting(part, samples)
        shards = self._folder / SHARDS_FOLDER
        manifest_path = shards / manifest_name(part)
        with storage_faults(str(manifest_path)), contextlib.ExitStack() as open_files:
            data: dict[Path, IO[bytes]] = {}
            files: dict[str, FileInfo] = {}
            tally = Tally()
            for kind, columns in heavy_columns(self.info).items():
                if kind == "hidden" and not columns:
                    continue
                name = data_file_name(part, kind)
                data[shards / name] = file = open_files.enter_context(temporary_file(shards))
                schema = arrow_schema(kind, columns, self._dataset_hash, part)
                files[kind] = write_arrow_file(file, name, schema, record_batches(schema, samples, columns, tally))
            tally.require_faithful(part)
            manifest = self._manifest(part, samples, files, tally)
            if publish(self._folder / DATASET_FILE, data, manifest_path, manifest.to_bytes()):
                return manifest
        return ShardManifest.from_bytes(manifest_path.read_bytes(), str(manifest_path))

    def _manifest(
        self, part: int, samples: Sequence[Sample], files: dict[str, FileInfo], tally: Tally
    ) -> ShardManifest:
        heavy = sum(size for name, size in tally.size_bytes.items() if not name.startswith("hidden."))
        measured = {
            "bytes_by_column": {**tally.size_bytes, "rows": files["rows"].size_bytes - heavy},
            "hidden_worst_channel_error": tally.worst_channel_error(),
        }
        stats = ShardStats.merged(map(sample_stats, samples))
        return ShardManifest(
            part=part,
            rows=len(samples),
            tokens=stats.tokens,
            first_sample_id=samples[0].sample_id,
            last_sample_id=samples[-1].sample_id,
            dataset_hash=self._dataset_hash,
            files=files,
            stats=stats.model_copy(update=measured),
        )

    def _require_fitting(self, part: int, samples: Sequence[Sample]) -> None:
        corpus = self.info.corpus
        if not 0 <= part < corpus.parts:
            raise UsageError(f"part {part}: the dataset has parts 0..{corpus.parts - 1}")
        if not 0 < len(samples) <= corpus.samples_per_part:
            raise UsageError(f"part {part}: {len(samples)} samples, a part holds 1..{corpus.samples_per_part}")
        for before, after in itertools.pairwise(samples):
            if before.sample_id >= after.sample_id:
                raise UsageError(f"part {part}: sample {after.sample_id} follows {before.sample_id}; ids must rise")
        for sample in samples:
            validate_sample(sample, self.info.tokenizer.vocab_size)
            require_captured(sample, self.info)


def committed_parts(shards: Path) -> set[int]:
    """Parts with a manifest in this folder."""
    matches = map(_MANIFEST_NAME.fullmatch, os.listdir(shards))
    return {int(match[1]) for match in matches if match}
