"""Teacher outputs as a data set: verified, compressed Arrow shards, written once and read by any number of students."""

from arwkv_store.errors import (
    ArwkvError,
    ConfigurationDiffers,
    CorruptShard,
    NotFound,
    TryAgain,
    UnsupportedVersion,
    UsageError,
)
from arwkv_store.manifest import BatchInfo, FileInfo, ShardManifest
from arwkv_store.reader import Dataset, open_dataset
from arwkv_store.sample import Sample, SparseLogits
from arwkv_store.sampler import ShardSampler
from arwkv_store.schema import CaptureInfo, CorpusInfo, DatasetInfo, TeacherInfo, TokenizerInfo
from arwkv_store.stats import DatasetStats, ShardStats
from arwkv_store.writer import Writer, create_dataset

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
    "TeacherInfo",
    "TokenizerInfo",
    "TryAgain",
    "UnsupportedVersion",
    "UsageError",
    "Writer",
    "create_dataset",
    "open_dataset",
]
