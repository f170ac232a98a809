"""Teacher outputs as a data set: verified, compressed Arrow shards, written once and read by any number of students."""

from arwkv_store.dataset.reader import Dataset, open_dataset
from arwkv_store.dataset.sampler import ShardSampler
from arwkv_store.dataset.writer import Writer, create_dataset
from arwkv_store.errors import (
    ArwkvError,
    ConfigurationDiffers,
    CorruptShard,
    NotFound,
    StorageFault,
    TryAgain,
    UnsupportedVersion,
    UsageError,
)
from arwkv_store.format.manifest import BatchInfo, FileInfo, ShardManifest
from arwkv_store.format.sample import Sample, SparseLogits
from arwkv_store.format.schema import CaptureInfo, CorpusInfo, DatasetInfo, TeacherInfo, TokenizerInfo
from arwkv_store.format.statistics import DatasetStats, ShardStats

__all__ = [
    "ArwkvError",
    "BatchInfo",
    "CaptureInfo",
    "ConfigurationDiffers",
    "CorpusInfo",
    "CorruptShard",
    "Dataset",
    "DatasetInfo",
    "DatasetStats",
    "FileInfo",
    "NotFound",
    "Sample",
    "ShardManifest",
    "ShardSampler",
    "ShardStats",
    "SparseLogits",
    "StorageFault",
    "TeacherInfo",
    "TokenizerInfo",
    "TryAgain",
    "UnsupportedVersion",
    "UsageError",
    "Writer",
    "create_dataset",
    "open_dataset",
]
