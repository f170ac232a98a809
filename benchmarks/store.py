"""Measures the store: sizes and speeds of the codecs, and reading against the libraries people use today.

    python benchmarks/store.py --peers-python PEERS/bin/python --json-out results.json

PEERS is a venv with `mosaicml-streaming litdata pylance datasets` in it; without it only our own figures are measured.
Contestants run one at a time, in turn, each in a process of its own, for several rounds; a ratio is the median over the
rounds of ratios within a round. The page cache is warm for everyone.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tyro
from numpy.typing import NDArray

from figures import print_table, write_json

os.environ.setdefault("OMP_NUM_THREADS", "1")

T, K, C = 1024, 64, 896
SAMPLES, SAMPLES_PER_PART = 100, 16
CONTESTANTS = Path(__file__).with_name("store_contestants.py")
PEERS = ("mosaicml", "mosaicml-zstd", "litdata", "lance", "huggingface", "mosaicml-100")
OURS = ("arwkv-none", "arwkv-zstd", "arwkv-100")


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    peers_python: str | None = None
    """Python of a venv that holds the other libraries."""
    shards: str | None = None
    """A dataset with real hidden states, to measure their bytes per value on."""
    rounds: int = 5
    """Rounds of the reading race."""
    many_shards: int = 20_000
    """Synthetic manifests to open."""
    json_out: Path | None = None
    """Where to write the results as JSON."""


def codec_figures() -> list[dict[str, Any]]:
    """Bytes per token, KL and speed of every logits codec on the made-up teacher."""
    from arwkv_store.format.codecs import logits_compact, logits_exact, logits_raw, logits_sampled
    from store_teacher import Teacher, adaptive, kl_nats

    teacher = Teacher.made()
    bf16 = {ids: teacher.top_k(T, K, head_dtype="bfloat16", ids=ids, seed=1) for ids in ("uniform", "zipf")}
    fp32 = teacher.top_k(T, K, head_dtype="float32", ids="uniform", seed=1)
    drawn = teacher.sampled(T, 50, head_k=0, ids="uniform", seed=1)
    hybrid = teacher.sampled(T, 50, head_k=16, ids="uniform", seed=1)
    cases = [
        ("exact k=64, bf16 head", logits_exact, bf16["uniform"], K),
        ("exact k=64, bf16 head, Zipf ids", logits_exact, bf16["zipf"], K),
        ("exact k=64, fp32 head", logits_exact, fp32, K),
        ("compact k=64", logits_compact, fp32, K),
        ("compact k=64, Zipf ids", logits_compact, bf16["zipf"], K),
        ("compact adaptive 0.98", logits_compact, adaptive(fp32, 0.98), K),
        ("exact adaptive 0.98, bf16 head", logits_exact, adaptive(bf16["uniform"], 0.98), K),
        ("sampled 50", logits_sampled, drawn, 50),
        ("hybrid 16+50", logits_compact, hybrid, 66),
        ("none k=64", logits_raw, fp32, K),
    ]
    rows = []
    for name, codec, logits, limit in cases:
        cell = np.frombuffer(codec.encode(logits, limit), np.uint8)
        read = codec.decode(cell, T, limit)
        rows.append(
            {
                "codec": name,
                "mean_k": float(logits.counts.mean()),
                "bytes_per_token": len(cell) / T,
                "kl_nats": max(kl_nats(logits, read), 0.0),
                "largest_error_nats": float(np.abs(read.logprobs - logits.logprobs).max()),
                "encode_tokens_per_s": T / best_s(partial(codec.encode, logits, limit)),
                "decode_tokens_per_s": T / best_s(partial(codec.decode, cell, T, limit)),
            }
        )
    return [{"teacher": teacher.describe()}, *rows]


def hidden_figures(shards: str | None) -> list[dict[str, Any]]:
    """Bytes per value, speed and worst channel error of the hidden-state codecs."""
    from arwkv_store.format.codecs import hidden_bf16, hidden_fp8, hidden_int8, hidden_raw
    from arwkv_store.format.codecs.rounding import ChannelError

    states = real_states(shards) if shards else made_up_states()
    source = "real" if shards else "made up"
    rows = []
    for codec in (hidden_bf16, hidden_fp8, hidden_int8, hidden_raw):
        cell = np.frombuffer(codec.encode(states), np.uint8)
        read = codec.decode(cell, *states.shape)
        rows.append(
            {
                "codec": f"{codec.__name__.rpartition('_')[2]} ({source})",
                "bytes_per_value": len(cell) / states.size,
                "worst_channel_error": ChannelError.of(states, read).worst(),
                "encode_bytes_per_s": states.nbytes / best_s(partial(codec.encode, states)),
                "decode_bytes_per_s": states.nbytes / best_s(partial(codec.decode, cell, *states.shape)),
            }
        )
    return rows


def made_up_states() -> NDArray[Any]:
    """[T, C] with channels of differing scale."""
    rng = np.random.default_rng(0)
    scaled = rng.standard_normal((T, C)) * rng.lognormal(0, 0.5, C)
    return scaled.astype(np.float32).astype(ml_dtypes.bfloat16)


def real_states(uri: str) -> NDArray[Any]:
    """About a thousand tokens of the first hidden column of a dataset."""
    from arwkv_store import open_dataset

    dataset, states, tokens = open_dataset(uri, columns=["hidden"]), [], 0
    for sample in dataset:
        states.append(next(iter(sample.hidden.values())))
        tokens += len(sample.tokens)
        if tokens >= T:
            break
    return np.concatenate(states)


def best_s(work: Callable[[], object], repeats: int = 15) -> float:
    """The shortest of several runs: what the code costs when nobody else is on the core."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def write_all(folder: Path, peers_python: str | None) -> list[str]:
    """The same samples in every contestant's format; the names of those that were written."""
    from store_datasets import write_arwkv, write_samples

    write_samples(folder, SAMPLES)
    for name in OURS:
        write_arwkv(folder / name, folder / "samples.npz", name, 1 if name == "arwkv-100" else SAMPLES_PER_PART)
    written = list(OURS)
    for name in PEERS if peers_python else ():
        if ask("write", name, folder, peers_python) is not None:
            written.append(name)
    return written


def ask(action: str, name: str, folder: Path, peers_python: str | None) -> dict[str, float] | None:
    """One measurement in a fresh process; None (and why, on stderr) where the library fails."""
    python = sys.executable if name.startswith("arwkv") else peers_python
    command = [str(python), str(CONTESTANTS), action, name, str(folder / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode:
        print(f"{name} {action}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    answer: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def race(action: str, names: list[str], folder: Path, settings: Settings) -> list[dict[str, Any]]:
    """Every contestant in turn, for several rounds; seconds and ratios of MosaicML's time to each one's."""
    rounds: list[dict[str, dict[str, float]]] = []
    for _ in range(settings.rounds):
        answers = {name: ask(action, name, folder, settings.peers_python) for name in names}
        rounds.append({name: answer for name, answer in answers.items() if answer is not None})
    rows = []
    for name in names:
        if not all(name in one for one in rounds):
            continue
        row: dict[str, Any] = {"action": action, "contestant": name}
        for clock in ("wall_s", "cpu_s"):
            seconds = [one[name][clock] for one in rounds if clock in one[name]]
            if seconds:
                row[clock] = statistics.median(seconds)
            for other in names:
                ratios = [
                    one[other][clock] / one[name][clock] for one in rounds if other in one and clock in one[other]
                ]
                if other != name and ratios and name.startswith("arwkv"):
                    row[f"{clock}_of_{other}"] = statistics.median(ratios)
        rows.append(row)
    return rows


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for the contestants' files, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="store-benchmark-") as folder:
        yield Path(folder)


def main() -> None:
    """Measure, print, write."""
    from store_datasets import many_shards_figures

    settings = tyro.cli(Settings, description=__doc__)
    results: dict[str, Any] = {"logits": codec_figures(), "hidden": hidden_figures(settings.shards)}
    print_table("Logits codecs", results["logits"][1:])
    print_table("Hidden-state codecs", results["hidden"])
    with scratch() as folder:
        results["many_shards"] = many_shards_figures(folder / "many", settings.many_shards)
        print_table("Opening many shards", results["many_shards"])
    with scratch() as folder:
        names = write_all(folder, settings.peers_python)
        whole = [name for name in names if not name.endswith("-100")]
        results["read"] = race("read", whole, folder, settings)
        few = [name for name in whole if name.startswith("arwkv") or name == "mosaicml"]
        for action in ("shuffled", "random"):
            results[action] = race(action, few, folder, settings)
        results["open"] = race("open", [name for name in names if name.endswith("-100")], folder, settings)
        for action in ("read", "shuffled", "random", "open"):
            print_table(f"Reading: {action} (1024 tokens, k=64, one layer of 896)", results[action])
    print(json.dumps(results["logits"][0]))
    write_json(settings.json_out, results)


if __name__ == "__main__":
    main()
