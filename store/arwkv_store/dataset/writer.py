"""Creating a dataset: identity first, then parts in any order, from any number of processes."""

import contextlib
import hashlib
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from arwkv_store.arrow.arrow_file_writer import write_arrow_file
from arwkv_store.arrow.rows import arrow_schema, record_batches
from arwkv_store.arrow.tally import Tally
from arwkv_store.dataset.summarize import is_milestone, summarize
from arwkv_store.errors import ArwkvError, ConfigurationDiffers, UsageError
from arwkv_store.format.columns import heavy_columns, require_captured
from arwkv_store.format.hidden_names import is_hidden_column
from arwkv_store.format.layout import DATASET_FILE, data_file_name, manifest_uri
from arwkv_store.format.manifest import FileInfo, ShardManifest
from arwkv_store.format.sample import Sample, validate_sample
from arwkv_store.format.schema import DatasetInfo, require_same
from arwkv_store.format.statistics import ShardStats, sample_stats
from arwkv_store.places.commit import storage_faults
from arwkv_store.places.target import Target, target_of

log = logging.getLogger(__name__)


def create_dataset(uri: str | Path, info: DatasetInfo) -> "Writer":
    """Start or resume the dataset in a folder, or at `s3://`, `hf://` or another fsspec URI.

    Writes dataset.json if there is none. Raises ConfigurationDiffers, naming each differing field, if a dataset with
    another identity exists; UsageError for a URI that cannot be written; TryAgain if the disk is full.
    """
    heavy_columns(info)
    target = target_of(uri)
    raw = target.begin(info.to_bytes())
    where = f"{target.uri}/{DATASET_FILE}"
    on_disk = DatasetInfo.from_bytes(raw, where)
    require_same(on_disk, info, where)
    return Writer(target, on_disk, hashlib.sha256(raw).hexdigest())


class Writer:
    """Writes parts of one dataset. Safe to use from many processes at once: a part's first commit wins."""

    def __init__(self, target: Target, info: DatasetInfo, dataset_hash: str) -> None:
        self.info = info
        """The identity on disk."""
        self._target, self._dataset_hash = target, dataset_hash
        self._commits = 0

    def put_beside(self, name: str, content: bytes) -> None:
        """Put a file next to dataset.json, completely or not at all; an existing file stays."""
        self._target.put_beside(name, content)

    def replace_beside(self, name: str, content: bytes) -> None:
        """Put a file next to dataset.json in the place of an earlier one, completely or not at all."""
        self._target.replace_beside(name, content)

    def missing_parts(self) -> list[int]:
        """Parts that have no manifest yet, in order; in a dataset that grows, those before the last committed one."""
        present = self._target.committed_parts()
        return [part for part in range(self.info.corpus.parts or max(present, default=-1) + 1) if part not in present]

    def write_shard(self, part: int, samples: Sequence[Sample], *, exact: bool = False) -> ShardManifest:
        """Commit a part and return its manifest; if another process was first, return that one's manifest.

        Raises UsageError for samples that do not fit the dataset (nothing is written), TryAgain if the disk fails, and
        with `exact` ConfigurationDiffers if the committed part has other bytes.
        """
        self._require_fitting(part, samples)
        with storage_faults(manifest_uri(self._target.uri, part)), contextlib.ExitStack() as open_files:
            data: dict[str, IO[bytes]] = {}
            files: dict[str, FileInfo] = {}
            tally = Tally()
            for kind, columns in heavy_columns(self.info).items():
                if kind == "hidden" and not columns:
                    continue
                data[kind] = file = open_files.enter_context(self._target.temporary_file())
                version = self.info.format_version
                schema = arrow_schema(kind, columns, self._dataset_hash, part, version)
                batches = record_batches(schema, samples, columns, tally)
                heavy = len(columns) if version > 1 else 0
                files[kind] = write_arrow_file(file, data_file_name(part, kind), schema, batches, heavy)
            tally.require_faithful(part)
            manifest = self._target.placed(self._manifest(part, samples, files, tally))
            if not self._target.publish(manifest, data):
                return self._committed_before(part, files if exact else {})
        self._commits += 1
        if is_milestone(self._commits):
            self.summarize()
        return manifest

    def committed_parts(self) -> set[int]:
        """The parts that have a manifest."""
        return self._target.committed_parts()

    def _committed_before(self, part: int, expected: dict[str, FileInfo]) -> ShardManifest:
        """The manifest of a part that another process committed. Raises ConfigurationDiffers if a file differs."""
        committed = self.committed(part)
        if any(file.sha256 != committed.files[kind].sha256 for kind, file in expected.items()):
            raise ConfigurationDiffers(
                f"{manifest_uri(self._target.uri, part)}: holds other samples than the same command makes now; "
                "restore the text it was made of, or name another folder"
            )
        return committed

    def summarize(self) -> None:
        """Write the summary of manifests, which spares readers time: at milestones, and when a run ends.

        It is a cache, so what prevents it is logged, and harms nothing.
        """
        if self._target.summarized:
            try:
                summarize(self._target.uri)
            except (ArwkvError, OSError) as error:
                log.warning("%s: no summary of manifests was written: %s", self._target.uri, error)

    def committed(self, part: int) -> ShardManifest:
        """The manifest of a part that is committed."""
        return ShardManifest.from_bytes(self._target.manifest(part), manifest_uri(self._target.uri, part))

    def _manifest(
        self, part: int, samples: Sequence[Sample], files: dict[str, FileInfo], tally: Tally
    ) -> ShardManifest:
        heavy = sum(size for name, size in tally.size_bytes.items() if not is_hidden_column(name))
        measured = {
            "bytes_by_column": {**tally.size_bytes, "rows": files["rows"].size_bytes - heavy},
            "hidden_worst_channel_error": tally.worst_channel_error(),
        }
        stats = ShardStats.merged(map(sample_stats, samples))
        return ShardManifest(
            format_version=self.info.format_version,
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
        if part < 0 or (part >= corpus.parts and not corpus.grows):
            raise UsageError(f"part {part}: the dataset has parts 0..{corpus.parts - 1}")
        if not 0 < len(samples) <= corpus.samples_per_part:
            raise UsageError(f"part {part}: {len(samples)} samples, a part holds 1..{corpus.samples_per_part}")
        for before, after in itertools.pairwise(samples):
            if before.sample_id >= after.sample_id:
                raise UsageError(f"part {part}: sample {after.sample_id} follows {before.sample_id}; ids must rise")
        for sample in samples:
            validate_sample(sample, self.info.tokenizer.vocab_size)
            require_captured(sample, self.info)
