"""The datasets of the store's benchmark: the race's samples, and a dataset of very many shards."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from arwkv_store import (
    CaptureInfo,
    CorpusInfo,
    DatasetInfo,
    Sample,
    SparseLogits,
    TeacherInfo,
    TokenizerInfo,
    create_dataset,
)
from arwkv_store.dataset.summarize import summarize
from store_teacher import VOCAB_SIZE, Teacher

T, K, C = 1024, 64, 896
# In a process of its own: a peak of memory is only seen where none was higher before.
OPEN = """
import json, sys, time
from pathlib import Path
from arwkv_store import open_dataset
def peak_kib():
    # getrusage's peak is inherited from the parent process; this one is the program's own.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before, start = peak_kib(), time.perf_counter()
dataset = open_dataset(sys.argv[1])
seconds = time.perf_counter() - start
grown = (peak_kib() - before) * 1024
print(json.dumps([seconds, grown, len(dataset)]))
"""


def write_samples(folder: Path, n: int) -> None:
    """The race's samples as plain arrays, from which every contestant writes its own files."""
    teacher, rng = Teacher.made(), np.random.default_rng(0)
    logits = [teacher.top_k(T, K, head_dtype="bfloat16", ids="uniform", seed=seed) for seed in range(n)]
    scale = rng.lognormal(0, 0.5, C)
    hidden = [(rng.standard_normal((T, C)) * scale).astype(np.float32).astype(ml_dtypes.bfloat16) for _ in range(n)]
    np.savez(
        folder / "samples.npz",
        tokens=rng.integers(0, VOCAB_SIZE, (n, T)).astype(np.int32),
        ids=np.stack([one.ids.reshape(T, K) for one in logits]),
        logprobs=np.stack([one.logprobs.reshape(T, K) for one in logits]),
        hidden=np.stack([one.view(np.uint16) for one in hidden]),
    )


def write_arwkv(folder: Path, samples: Path, name: str, samples_per_part: int) -> None:
    """The race's samples as a dataset of ours: codecs `none`, or `exact` and `bf16`."""
    codecs = ("exact", "bf16") if name == "arwkv-zstd" else ("none", "none")
    with np.load(samples) as arrays:
        columns = {key: arrays[key] for key in arrays.files}
    n = len(columns["tokens"])
    writer = create_dataset(folder, _info(n, samples_per_part, *codecs))
    for part in writer.missing_parts():
        rows = range(part * samples_per_part, min((part + 1) * samples_per_part, n))
        writer.write_shard(part, [_sample(i, columns) for i in rows])
    summarize(str(folder))  # as at the end of a capture


def many_shards_figures(folder: Path, shards: int) -> list[dict[str, Any]]:
    """Seconds and memory to open datasets of more and more shards, all but their numbers copies of one."""
    rows = []
    for n in (100, shards // 10, shards):
        path = folder / str(n)
        info = _info(4 * n, 4, "none", "none", hidden=False, max_length=8)
        writer = create_dataset(path, info)
        manifest = writer.write_shard(0, [_small(i) for i in range(4)])
        for part in range(1, n):
            names = {
                kind: file.model_copy(update={"name": f"part-{part:06d}.arrow"})
                for kind, file in manifest.files.items()
            }
            other = manifest.model_copy(update={"part": part, "files": names})
            (path / f"shards/part-{part:06d}.json").write_bytes(other.to_bytes())
        opened = subprocess.run([sys.executable, "-c", OPEN, str(path)], check=True, capture_output=True, text=True)
        seconds, grown, samples = json.loads(opened.stdout)
        assert samples == 4 * n
        rows.append(
            {"shards": str(n), "open_s": seconds, "us_per_shard": 1e6 * seconds / n, "peak_bytes_per_shard": grown / n}
        )
    return rows


def _info(
    samples: int, samples_per_part: int, logits: str, hidden_dtype: str, *, hidden: bool = True, max_length: int = T
) -> DatasetInfo:
    capture = {"top_k": K, "max_length": max_length, "logits_codec": logits, "hidden_dtype": hidden_dtype}
    if hidden:
        capture |= {"hidden_states": "attention", "layers": (0,)}
    return DatasetInfo(
        teacher=TeacherInfo(model="made-up", model_type="qwen2", hidden_size=C, num_hidden_layers=1, dtype="bfloat16"),
        tokenizer=TokenizerInfo(hash="-", vocab_size=VOCAB_SIZE),
        vocab_size_padded=VOCAB_SIZE,
        capture=CaptureInfo.model_validate(capture),
        corpus=CorpusInfo(
            fingerprint="-",
            samples=samples,
            tokens=samples * max_length,
            samples_per_part=samples_per_part,
            parts=-(-samples // samples_per_part),
        ),
    )


def _sample(i: int, columns: dict[str, Any]) -> Sample:
    logits = SparseLogits(
        np.full(T, K, np.int32),
        columns["ids"][i].reshape(-1),
        columns["logprobs"][i].reshape(-1),
        np.full(T, -3.0, np.float32),
    )
    hidden = {"attn.0": columns["hidden"][i].view(ml_dtypes.bfloat16)}
    return Sample(i, columns["tokens"][i], np.ones(T, np.bool_), logits=logits, hidden=hidden)


def _small(i: int) -> Sample:
    counts, ids = np.ones(8, np.int32), np.arange(8, dtype=np.int32)
    logits = SparseLogits(counts, ids, np.full(8, -0.1, np.float32), np.full(8, -2.35, np.float32))
    return Sample(i, ids, np.ones(8, np.bool_), logits=logits)
