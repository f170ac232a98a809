"""How fast the index service is: downloads beside nginx, lists and statistics of many shards, scans, a million rows.

python benchmarks/api.py [--shards 10000] [--rows 1000000] [--only downloads,scan,requests,rows,looks]
                         [--databases sqlite,postgresql] [--json-out FILE]
"""

import argparse
import asyncio
import gc
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import numpy as np
from sqlalchemy import Engine, insert
from sqlalchemy.orm import Session

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from api_many import many_shards
from api_postgres import new_database, postgres_server
from api_serving import serving
from arwkv_api.http.app import SWITCH_INTERVAL_S
from arwkv_api.http.models import shard_page
from arwkv_api.index.database import connect
from arwkv_api.index.orm import DatasetRow, ShardRow
from arwkv_api.index.pace import Rest
from arwkv_api.index.query import ShardFilter, find_dataset, list_shards
from arwkv_api.index.scan import scan_root
from arwkv_api.index.timeline import grown, timeline_of
from arwkv_api.roots.folders import shard_files
from arwkv_store import ShardManifest, open_dataset
from arwkv_store.format.layout import data_file_name, manifest_name
from store_examples import example_dataset_info, write_example_dataset

CLIENTS = 8
RANGE_BYTES = 8 << 20
FILE_BYTES = 256 << 20
ROUND_S = 4.0
ROUNDS = 3
RATE_PER_S = 200
LOAD_S = 10.0
ROWS_REPEATS = 100
LOOK_ROUNDS = 5

Results = dict[str, float]


def main() -> None:
    """Measure what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", default="downloads,scan,requests,rows,looks")
    parser.add_argument("--databases", default="sqlite,postgresql")
    parser.add_argument("--json-out", type=Path)
    asked = parser.parse_args()
    parts = asked.only.split(",")
    results: Results = {}
    with tempfile.TemporaryDirectory(prefix="arwkv-bench-") as name:
        folder = Path(name)
        if "downloads" in parts:
            results |= downloads(folder)
        root = folder / "many"
        if {"scan", "requests", "looks"} & set(parts):
            many_shards(root / "many", asked.shards)
        if "looks" in parts:
            results |= looks(folder, root / "many")
        for database in asked.databases.split(","):
            with _databases(database, folder) as new:
                found: Results = {}
                if "scan" in parts:
                    found |= scanning(new(), root)
                if "requests" in parts:
                    for workers in ("1", "2"):
                        found |= asyncio.run(requests(new(), folder, root, workers))
                if "rows" in parts:
                    found |= million(new(), folder, asked.rows)
            results |= {f"{database}_{name}": value for name, value in found.items()}
    print("\n".join(f"{name:44} {value:12,.3f}" for name, value in results.items()))
    if asked.json_out is not None:
        asked.json_out.write_text(json.dumps(results, indent=2) + "\n")


@contextmanager
def _databases(name: str, folder: Path) -> Iterator[Callable[[], str]]:
    """Makes URLs of empty databases."""
    if name == "sqlite":
        yield lambda: f"sqlite:///{folder / uuid.uuid4().hex}.sqlite3"
        return
    with postgres_server() as socket_folder:
        yield lambda: new_database(socket_folder)


def scanning(database: str, root: Path) -> Results:
    """Seconds to index all manifests, and to look at them again when nothing changed."""
    engine = connect(database)
    begun = time.perf_counter()
    scan_root(engine, str(root))
    first_s = time.perf_counter() - begun
    begun = time.perf_counter()
    scan_root(engine, str(root))
    again_s = time.perf_counter() - begun
    engine.dispose()
    return {"index_s": first_s, "rescan_unchanged_s": again_s}


async def requests(database: str, folder: Path, root: Path, workers: str) -> Results:
    """Latencies of the dataset's statistics and of list pages at a fixed rate, whatever the answers take."""
    results: Results = {}
    paths = {
        "stats": "/v1/datasets/many/stats",
        "list_first_page": "/v1/datasets/many/shards?limit=100",
        "list_sorted_page": "/v1/datasets/many/shards?limit=100&sort=-tokens&min_tokens=1",
        # A page that nobody asked for before, each time.
        "list_new_page": "/v1/datasets/many/shards?limit=100&sort=-committed_at&max_tokens={number}",
    }
    flags = ["--root", str(root), "--database", database, "--workers", workers, "--verify-mb-per-s", "0"]
    with serving(*flags, cache=folder / "cache") as (url, _):
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64)) as session:
            while (await (await session.get(f"{url}/v1/datasets/many")).json())["shards"] < len(
                list((root / "many" / "shards").glob("*.json"))
            ):
                await asyncio.sleep(1)
            engine = connect(database)
            _analyze(engine)
            engine.dispose()
            for name, path in paths.items():
                latencies_ms = await _load(session, url + path)
                results[f"workers_{workers}_{name}_p50_ms"] = float(np.quantile(latencies_ms, 0.5))
                results[f"workers_{workers}_{name}_p99_ms"] = float(np.quantile(latencies_ms, 0.99))
    return results


async def _load(session: aiohttp.ClientSession, url: str) -> list[float]:
    async def one(at_s: float, number: int) -> float:
        await asyncio.sleep(max(at_s - time.perf_counter(), 0))
        async with session.get(url.replace("{number}", str(10**9 + number))) as answer:
            assert answer.status == 200
            await answer.read()
        return (time.perf_counter() - at_s) * 1000

    for number in range(20):
        await one(time.perf_counter(), -number)
    begun = time.perf_counter() + 0.1
    return await asyncio.gather(*(one(begun + i / RATE_PER_S, i + 1) for i in range(int(RATE_PER_S * LOAD_S))))


def million(database: str, folder: Path, rows: int) -> Results:
    """Latencies of the index alone, in-process, over a dataset of very many shards."""
    engine = connect(database)
    _fill(engine, folder, rows)
    roots = (str(folder),)
    rng = np.random.default_rng(0)
    results: Results = {}
    with Session(engine) as session:
        dataset = find_dataset(session, roots, "huge")
        deep = list_shards(session, dataset.id, ShardFilter(), "-tokens", None, 100)[1]
        for _ in range(50):
            deep = list_shards(session, dataset.id, ShardFilter(), "-tokens", deep, 1000)[1]

        def page(sort: str, wanted: ShardFilter, cursor: str | None = None) -> None:
            items, _ = list_shards(session, dataset.id, wanted, sort, cursor, 100)
            shard_page(items, {}, None, 0)

        cases = {
            "rows_list_sorted": lambda: page("-tokens", ShardFilter(), deep),
            "rows_filter_tokens": lambda: page("part", ShardFilter(min_tokens=999_000)),
            "rows_filter_tokens_sorted": lambda: page("-committed_at", ShardFilter(min_tokens=999_000)),
            "rows_filter_state": lambda: page("part", ShardFilter(state="corrupt")),
            "rows_filter_state_of_none": lambda: page("entropy_mean", ShardFilter(state="missing")),
            "rows_filter_tokens_of_none": lambda: page("samples", ShardFilter(min_tokens=10**9)),
            "rows_find_sample": lambda: page("part", ShardFilter(sample_id=int(rng.integers(4 * rows)))),
            "rows_dataset": lambda: find_dataset(session, roots, "huge"),
            "rows_stats": lambda: find_dataset(session, roots, "huge").stats,
            "rows_timeline": lambda: timeline_of(find_dataset(session, roots, "huge").growth, 200),
        }
        for name, ask in cases.items():
            took_ms = []
            for _ in range(ROWS_REPEATS):
                session.expire_all()
                begun = time.perf_counter()
                ask()
                took_ms.append((time.perf_counter() - begun) * 1000)
            results[f"{name}_p50_ms"] = float(np.quantile(took_ms, 0.5))
            results[f"{name}_p99_ms"] = float(np.quantile(took_ms, 0.99))
    engine.dispose()
    return results


def looks(folder: Path, many: Path) -> Results:
    """A page that nobody asked for before, alone and while another thread looks at the shards of a folder, with and
    without rests: medians of wall times in turns, in process, and the processor seconds of a look."""
    engine = connect(f"sqlite:///{folder / 'looks.sqlite3'}")
    _fill(engine, folder, 10_000)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    took_ms: dict[str, list[float]] = {"alone": [], "look": [], "rested_look": []}
    look_s: list[float] = []
    with Session(engine) as session:
        dataset_id = find_dataset(session, (str(folder),), "huge").id
        for _ in range(LOOK_ROUNDS):
            for kind in took_ms:
                ended = threading.Event()
                thread = threading.Thread(target=_look, args=(many, kind == "rested_look", ended, look_s))
                if kind != "alone":
                    thread.start()
                until = time.perf_counter() + ROUND_S
                while time.perf_counter() < until:
                    begun = time.perf_counter()
                    wanted = ShardFilter(max_tokens=10**9 + len(took_ms[kind]))
                    rows, _ = list_shards(session, dataset_id, wanted, "-committed_at", None, 100)
                    shard_page(rows, {}, None, 0)
                    took_ms[kind].append((time.perf_counter() - begun) * 1000)
                    time.sleep(0.002)
                ended.set()
                if kind != "alone":
                    thread.join()
    engine.dispose()
    found = {f"page_{kind}_p50_ms": float(np.median(some)) for kind, some in took_ms.items()}
    return {**found, "look_processor_s": float(np.median(look_s))}


def _look(many: Path, rested: bool, ended: threading.Event, look_s: list[float]) -> None:
    meanwhile: Callable[[], None] = Rest() if rested else lambda: None
    while not ended.is_set():
        begun_s = time.thread_time()
        shard_files(many, meanwhile)
        look_s.append(time.thread_time() - begun_s)


def _fill(engine: Engine, folder: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    with Session(engine) as session, session.begin():
        dataset = DatasetRow(
            name="huge", root=str(folder), folder=str(folder), state="ready", identity=b"{}", dataset_hash="",
            teacher="t", identity_mtime_ns=0, parts=rows, shards=rows, created_at_s=0.0, updated_at_s=0.0,
            stats=open_dataset(many_shards(folder / "one", 1)).stats().model_dump_json(),
        )  # fmt: skip
        session.add(dataset)
        session.flush()
        tokens = rng.integers(1, 1_000_000, rows)
        dataset.growth = grown(None, ((float(part), int(count), 1000) for part, count in enumerate(tokens)))
        for start in range(0, rows, 20_000):
            parts = range(start, min(start + 20_000, rows))
            session.execute(insert(ShardRow), [_row(dataset.id, part, int(tokens[part])) for part in parts])
    _analyze(engine)


def _analyze(engine: Engine) -> None:
    """What PostgreSQL's autovacuum does within a minute."""
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.exec_driver_sql("ANALYZE")


def _row(dataset_id: int, part: int, tokens: int) -> dict[str, object]:
    return {
        "dataset_id": dataset_id,
        "part": part,
        "state": "corrupt" if part % 1000 == 7 else "committed",
        "samples": 4,
        "tokens": tokens,
        "size_bytes": 1000,
        "first_sample_id": 4 * part,
        "last_sample_id": 4 * part + 3,
        "entropy_mean": 1.0,
        "tail_mass_mean": 0.1,
        "committed_at_s": float(part),
        "fingerprint": "0" * 32,
    }


def downloads(folder: Path) -> Results:
    """Bytes per second of ranges by eight clients, this service and nginx in turn, and the service's memory."""
    root = folder / "big"
    write_example_dataset(root / "big", info=example_dataset_info(samples=4, layers=()))
    shards = root / "big" / "shards"
    path = shards / data_file_name(0, "rows")
    _inflate(shards, path)
    results: Results = {}
    for workers in (1, 2):
        flags = ["--root", str(root), "--workers", str(workers), "--verify-mb-per-s", "0"]
        with serving(*flags, cache=folder / f"cache{workers}") as (url, pid), _nginx(folder, shards, workers) as nginx:
            before = _peak_bytes(pid)
            ours, theirs = [], []
            for _ in range(ROUNDS):
                ours.append(_pull(f"{url}/v1/datasets/big/shards/0/data"))
                theirs.append(_pull(f"{nginx}/{path.name}"))
            results[f"download_api_{workers}_GB_per_s"] = float(np.median(ours)) / 1e9
            results[f"download_nginx_{workers}_GB_per_s"] = float(np.median(theirs)) / 1e9
            results[f"download_ratio_{workers}"] = float(np.median(np.array(ours) / np.array(theirs)))
            results[f"download_memory_growth_{workers}_MiB"] = (_peak_bytes(pid) - before) / (1 << 20)
    return results


def _inflate(shards: Path, path: Path) -> None:
    """Make part 0's file large: the service checks size and hash, its reader would check the rest."""
    manifest = ShardManifest.from_bytes((shards / manifest_name(0)).read_bytes(), "part 0")
    with path.open("r+b") as file:
        for start in range(0, FILE_BYTES, 1 << 20):
            file.seek(start)
            file.write(os.urandom(1 << 20))
    info = manifest.files["rows"]
    grown = info.footer.model_copy(update={"length": info.footer.length + FILE_BYTES - info.size_bytes})
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    files = {"rows": info.model_copy(update={"size_bytes": FILE_BYTES, "footer": grown, "sha256": sha256})}
    (shards / manifest_name(0)).write_bytes(manifest.model_copy(update={"files": files}).to_bytes())


def _pull(url: str) -> float:
    """Bytes per second that all clients together receive."""
    context = get_context("spawn")
    with context.Pool(CLIENTS) as pool:
        pool.map(_client, [(url, 0.2)] * CLIENTS)  # everyone has started
        begun = time.perf_counter()
        received = sum(pool.map(_client, [(url, ROUND_S)] * CLIENTS, chunksize=1))
        return received / (time.perf_counter() - begun)


def _client(job: tuple[str, float]) -> int:
    import socket

    url, seconds = job
    place = urlsplit(url)
    assert place.hostname is not None
    rng = np.random.default_rng(os.getpid())
    buffer, received = memoryview(bytearray(1 << 20)), 0
    with socket.create_connection((place.hostname, place.port or 80)) as connection:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            start = int(rng.integers(0, FILE_BYTES - RANGE_BYTES))
            lines = [f"GET {place.path} HTTP/1.1", "Host: x", f"Range: bytes={start}-{start + RANGE_BYTES - 1}", "", ""]
            connection.sendall("\r\n".join(lines).encode())
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096)
            assert b" 206 " in head.split(b"\r\n")[0], head
            left = RANGE_BYTES - len(head.split(b"\r\n\r\n", 1)[1])
            while left:
                left -= connection.recv_into(buffer, min(left, len(buffer)))
            received += RANGE_BYTES
    return received


@contextmanager
def _nginx(folder: Path, shards: Path, workers: int) -> Iterator[str]:
    binary = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(binary).exists():
        raise SystemExit("nginx: not found; install it (apt-get install nginx-light) or leave out downloads")
    port = 18_500 + workers
    place = folder / f"nginx{workers}"
    place.mkdir()
    config = f"""daemon off; user root; worker_processes {workers}; pid {place}/pid; error_log {place}/errors;
    events {{ worker_connections 64; }}
    http {{ sendfile on; tcp_nopush on; access_log off; client_body_temp_path {place}; proxy_temp_path {place};
    fastcgi_temp_path {place}; uwsgi_temp_path {place}; scgi_temp_path {place};
    server {{ listen 127.0.0.1:{port}; root {shards}; }} }}"""
    (place / "nginx.conf").write_text(config)
    process = subprocess.Popen([binary, "-c", str(place / "nginx.conf"), "-p", str(place)])
    try:
        time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _peak_bytes(pid: int) -> int:
    """Peak resident memory of a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(_status_bytes(one) for one in (str(pid), *children))


def _status_bytes(pid: str) -> int:
    lines: Sequence[str] = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
