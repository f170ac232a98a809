"""Writes and reads the same samples in one storage library; run in a process (and a venv) of its own.

`python store_contestants.py write|read|shuffled|open|random CONTESTANT FOLDER` prints one JSON line. A sample is
1024 tokens, 64 ids and log-probabilities each, and one layer of 896 bf16 values a token: 2.4 MB.
"""

import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

T, K, C = 1024, 64, 896
TYPES = {"tokens": ("int32", T), "ids": ("int32", T * K), "logprobs": ("float32", T * K), "hidden": ("uint16", T * C)}
Arrays = dict[str, Any]


def arrays(folder: Path) -> Iterator[Arrays]:
    """The samples, as `store.py` left them for every contestant."""
    with np.load(folder.parent / "samples.npz") as samples:
        columns = {name: samples[name] for name in samples.files}
    for i in range(len(columns["tokens"])):
        yield {name: np.ascontiguousarray(column[i]) for name, column in columns.items()}


def write_mosaicml(folder: Path, compression: str | None, shard_bytes: int = 1 << 26) -> None:
    """MosaicML streaming's MDS shards, hashes off, as is its default."""
    from streaming import MDSWriter

    columns = {
        "tokens": "ndarray:int32",
        "ids": "ndarray:int32",
        "logprobs": "ndarray:float32",
        "hidden": "ndarray:uint16",
    }
    with MDSWriter(out=str(folder), columns=columns, compression=compression, size_limit=shard_bytes) as writer:
        for sample in arrays(folder):
            writer.write(sample)


def open_mosaicml(folder: Path, shuffle: bool = False) -> Any:
    """A StreamingDataset on local files."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    return StreamingDataset(local=str(folder), shuffle=shuffle, batch_size=1)


def write_litdata(folder: Path) -> None:
    """litdata's chunks, through its own writer."""
    from litdata.streaming.cache import Cache

    cache = Cache(str(folder), chunk_bytes=1 << 26)
    for i, sample in enumerate(arrays(folder)):
        cache[i] = sample
    cache.done()
    cache.merge()


def open_litdata(folder: Path, shuffle: bool = False) -> Any:
    """A StreamingDataset on local files."""
    from litdata import StreamingDataset

    return StreamingDataset(str(folder), shuffle=shuffle)


def write_lance(folder: Path) -> None:
    """Lance with fixed-size lists."""
    import lance
    import pyarrow as pa

    def fixed(values: Any, dtype: Any) -> Any:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), dtype), values.size)

    types = {"tokens": pa.int32(), "ids": pa.int32(), "logprobs": pa.float32(), "hidden": pa.uint16()}
    batches = [
        pa.RecordBatch.from_arrays([fixed(sample[name], dtype) for name, dtype in types.items()], names=list(types))
        for sample in arrays(folder)
    ]
    lance.write_dataset(pa.Table.from_batches(batches), str(folder), max_rows_per_file=32)


def open_lance(folder: Path) -> Iterator[Arrays]:
    """Rows in order, eight to a batch."""
    import lance

    for batch in lance.dataset(str(folder)).to_batches(batch_size=8):
        columns = {
            name: batch.column(name).flatten().to_numpy().reshape(batch.num_rows, -1) for name in batch.schema.names
        }
        for row in range(batch.num_rows):
            yield {name: column[row] for name, column in columns.items()}


def write_huggingface(folder: Path) -> None:
    """Hugging Face datasets' Arrow files."""
    import datasets

    def flat() -> Iterator[Arrays]:
        for sample in arrays(folder):
            yield {name: value.reshape(-1) for name, value in sample.items()}

    features = datasets.Features(
        {name: datasets.Sequence(datasets.Value(dtype), length=length) for name, (dtype, length) in TYPES.items()}
    )
    cache = tempfile.mkdtemp(dir=folder.parent)
    datasets.Dataset.from_generator(flat, features=features, cache_dir=cache, writer_batch_size=16).save_to_disk(folder)
    shutil.rmtree(cache)


def open_huggingface(folder: Path) -> Any:
    """Memory-mapped, as numpy."""
    import datasets

    return datasets.load_from_disk(str(folder)).with_format("numpy")


def open_arwkv(folder: Path) -> Any:
    """Ours, verified."""
    from arwkv_store import open_dataset

    return open_dataset(folder)


def shuffled_arwkv(folder: Path) -> Iterator[Any]:
    """Every sample once, as the sampler orders them."""
    from arwkv_store import ShardSampler

    dataset = open_arwkv(folder)
    for (index,) in ShardSampler(dataset.shard_rows, batch_size=1, seed=1):
        yield dataset[index]


WRITERS: dict[str, Callable[[Path], None]] = {
    "mosaicml": lambda folder: write_mosaicml(folder, None),
    "mosaicml-zstd": lambda folder: write_mosaicml(folder, "zstd:1"),
    "mosaicml-100": lambda folder: write_mosaicml(folder, None, 1 << 21),
    "litdata": write_litdata,
    "lance": write_lance,
    "huggingface": write_huggingface,
}
READERS: dict[str, Callable[[Path], Any]] = {
    "arwkv-none": open_arwkv,
    "arwkv-zstd": open_arwkv,
    "arwkv-100": open_arwkv,
    "mosaicml": open_mosaicml,
    "mosaicml-zstd": open_mosaicml,
    "mosaicml-100": open_mosaicml,
    "litdata": open_litdata,
    "lance": open_lance,
    "huggingface": open_huggingface,
}


def touch(sample: Any) -> int:
    """Look at every page of a sample, so that nobody is quick by not reading."""
    if isinstance(sample, dict):
        values = list(sample.values())
    else:
        values = [sample.tokens, sample.logits.ids, sample.logits.logprobs, *sample.hidden.values()]
    return sum(int(np.ascontiguousarray(value).reshape(-1).view(np.uint8)[::4096].sum()) for value in values)


def timed(samples: Callable[[], Any]) -> dict[str, float]:
    """Wall and CPU seconds for reading what `samples()` yields."""
    wall, cpu = time.perf_counter(), time.process_time()
    n, checksum = 0, 0
    for sample in samples():
        checksum += touch(sample)
        n += 1
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "samples": n}


def measure(action: str, name: str, folder: Path) -> dict[str, float]:
    """One measurement in this process; imports are warmed up before the clock starts."""
    opened = READERS[name]
    if action == "read":
        if name == "mosaicml-zstd":
            copy = Path(tempfile.mkdtemp(dir=folder.parent))
            shutil.copytree(folder, copy, dirs_exist_ok=True)
            result = timed(lambda: opened(copy))
            shutil.rmtree(copy)
            return result
        warm = iter(opened(folder))
        next(warm)
        del warm
        return timed(lambda: opened(folder))
    if action == "shuffled":
        shuffled = shuffled_arwkv if name.startswith("arwkv") else lambda folder: opened(folder, True)  # type: ignore[call-arg]
        next(iter(shuffled(folder)))
        return timed(lambda: shuffled(folder))
    if action == "open":
        # A shard list alone is of no use: the clock stops when the first sample is in hand.
        next(iter(opened(folder)))
        wall = time.perf_counter()
        touch(next(iter(opened(folder))))
        return {"wall_s": time.perf_counter() - wall}
    dataset = opened(folder)
    order = random.Random(0).choices(range(len(dataset)), k=400)
    touch(dataset[order[0]])
    return timed(lambda: (dataset[i] for i in order))


def main() -> None:
    """One action, one JSON line."""
    action, name, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    if action == "write":
        WRITERS[name](folder)
        print(json.dumps({}))
    else:
        print(json.dumps(measure(action, name, folder)))


if __name__ == "__main__":
    main()
