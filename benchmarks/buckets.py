"""Datasets of very many parts in an object store: opening one, and a service whose root is the bucket.

    python benchmarks/buckets.py [--parts 1000000] [--served-parts 20000] [--json-out FILE]

The bucket is synthetic (see synthetic_bucket.py): its server counts requests. `open` opens a dataset of `--parts` in a
new process. `serve` lets `api serve` index a bucket of `--served-parts`, then counts the requests of a further look at
the bucket, and asks for pages of shards in many orders, 20 a second.
"""

import collections
import dataclasses
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from arwkv_store.commands.command_line import main
from figures import print_table, write_json
from synthetic_bucket import BUCKET, bucket_running

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from api_serving import serving

OPENING = """
import json, sys, time, resource
import arwkv_store, s3fs
begin = time.perf_counter()
dataset = arwkv_store.open_dataset(sys.argv[1])
took_s = time.perf_counter() - begin
print(json.dumps({"parts": len(dataset.shards), "samples": len(dataset), "open, s": took_s,
                  "peak, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""
LOOK_S = 5.0
PAGES = 200
RATE_PER_S = 20
ORDERS = ("part", "samples", "tokens", "size_bytes", "entropy_mean", "committed_at")


@dataclasses.dataclass(frozen=True)
class BucketsConfig:
    """Time and requests of opening and serving very large datasets in a bucket."""

    parts: int = 1_000_000
    """Of the dataset that is opened."""
    served_parts: int = 20_000
    """Of the dataset that is served: its index reads each manifest once."""
    rounds: int = 5
    """How often the dataset is opened."""
    json_out: Path | None = None
    """Write the figures to this file."""
    json: bool = False
    """Print the figures as one JSON document."""


def measure(config: BucketsConfig) -> dict[str, Any]:
    """Open, then serve."""
    with tempfile.TemporaryDirectory(prefix="arwkv-bench-") as name:
        os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ["ARWKV_CACHE"] = name
        results = {"open": _open(config), "serve": _serve(config, Path(name))}
    if not config.json:
        print_table("One dataset in a bucket", [results["open"]])
        print_table("A service whose root is a bucket", [results["serve"]])
    write_json(config.json_out, results)
    return results


def _open(config: BucketsConfig) -> dict[str, Any]:
    with bucket_running(config.parts) as address:
        os.environ["AWS_ENDPOINT_URL"] = address
        words = [sys.executable, "-c", OPENING, f"s3://{BUCKET}"]
        found, before = [], _requests(address)
        for _ in range(config.rounds):
            found.append(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
        asked = {kind: count / config.rounds for kind, count in (_requests(address) - before).items()}
    return {key: statistics.median(one[key] for one in found) for key in found[0]} | {"requests": asked}


def _serve(config: BucketsConfig, folder: Path) -> dict[str, Any]:
    with bucket_running(config.served_parts) as address:
        os.environ["AWS_ENDPOINT_URL"] = address
        flags = ["--root", f"s3://{BUCKET}", "--database", f"sqlite:///{folder}/index.sqlite3"]
        begin = time.perf_counter()
        with serving(*flags, "--store-scan-interval-s", str(LOOK_S), cache=folder / "cache", ready_s=3600) as (url, _):
            while _shards(url) < config.served_parts:
                time.sleep(0.5)
            indexed_s = time.perf_counter() - begin
            looked = _one_look(address)
            took_ms = _pages(url)
    return {
        "parts": config.served_parts,
        "indexed, s": indexed_s,
        "objects": 2 * config.served_parts + 2,
        "requests of an unchanged look": looked,
        "new page, p50, ms": float(np.quantile(took_ms, 0.5)),
        "p99, ms": float(np.quantile(took_ms, 0.99)),
    }


def _one_look(address: str) -> dict[str, int]:
    """What the service asks the bucket in one look: between two pauses of at least a second without a request."""
    for _ in range(2):  # the look that is under way may have begun before the last part was indexed
        before = _quiet(address)
        while _requests(address) == before:
            time.sleep(0.05)
        after = _quiet(address)
    return dict(after - before)


def _quiet(address: str) -> collections.Counter[str]:
    last, since = _requests(address), time.perf_counter()
    while time.perf_counter() - since < 1:
        time.sleep(0.1)
        if (now := _requests(address)) != last:
            last, since = now, time.perf_counter()
    return last


def _requests(address: str) -> collections.Counter[str]:
    return collections.Counter(_get(f"{address}/requests"))


def _shards(url: str) -> int:
    items = _get(f"{url}/v1/datasets")["items"]
    return int(items[0]["shards"]) if items and items[0]["state"] == "ready" else 0


def _pages(url: str) -> list[float]:
    """Milliseconds of pages that nobody asked for before."""
    draw, took_ms = random.Random(0), []
    for number in itertools.islice(itertools.count(), PAGES):
        order = draw.choice(("", "-")) + draw.choice(ORDERS)
        begin = time.perf_counter()
        _get(f"{url}/v1/datasets/{BUCKET}/shards?limit=100&sort={order}&max_tokens={10**9 + number}")
        took_ms.append((time.perf_counter() - begin) * 1000)
        time.sleep(max(0.0, 1 / RATE_PER_S - took_ms[-1] / 1000))
    return took_ms


def _get(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main("buckets.py", "Very large datasets in a bucket.", measure)
