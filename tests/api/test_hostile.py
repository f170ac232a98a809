"""Callers who mean harm, over bare sockets: refused, nothing outside the root sent, memory and service untouched."""

import itertools
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from api_many import many_shards
from api_serving import serving
from store_examples import example_dataset_info, write_example_dataset

SECRET = b"what must never leave"
GROWTH_LIMIT_BYTES = 64 << 20
BODY_BYTES = 100 << 20


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one dataset, a secret beside it, and links to the secret from within."""
    folder = tmp_path_factory.mktemp("hostile")
    info = example_dataset_info(samples=100, samples_per_part=100, hidden_size=1024)
    write_example_dataset(folder / "root" / "train", info=info, length=64)
    many_shards(folder / "root" / "many", 1000)
    (folder / "secret").write_bytes(SECRET)
    (folder / "root" / "secret").symlink_to(folder / "secret")
    (folder / "root" / "train" / "shards" / "part-000007.arrow").symlink_to(folder / "secret")
    (folder / "root" / "train" / "secret").symlink_to(folder / "secret")
    return folder / "root"


@pytest.fixture(scope="module")
def service(root: Path) -> Iterator[tuple[str, int]]:
    """Address and process of a service over it; whatever a test did, it answers at the end and ends cleanly."""
    with serving("--root", str(root), cache=root.parent / "cache") as (url, pid):
        for _ in range(20):  # everything is loaded before memory is compared
            httpx.get(f"{url}/v1/datasets/train/shards/0/data?file=hidden")
            httpx.get(f"{url}/v1/datasets/train/samples/0")
        yield url, pid
        assert httpx.get(f"{url}/v1/datasets/train").json()["shards"] == 1


def _connect(url: str) -> socket.socket:
    place = urlsplit(url)
    assert place.hostname is not None
    return socket.create_connection((place.hostname, place.port or 80), timeout=20)


def _ask(url: str, request: bytes) -> tuple[int, bytes]:
    """Status and everything that came until the service closed; 0 where it closed without an answer."""
    with _connect(url) as connection:
        connection.sendall(request)
        answer = b""
        try:
            while more := connection.recv(1 << 16):
                answer += more
        except ConnectionResetError:
            pass
    status = re.match(rb"HTTP/1\.1 (\d+)", answer)
    return int(status[1]) if status else 0, answer


def _peak_bytes(pid: int) -> int:
    return int(re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) * 1024


TARGETS = [
    "/../secret", "/page/../../secret", "/page/..%2f..%2fsecret", "/page/%2e%2e/%2e%2e/secret", "/page/....//secret",
    "/page/%252e%252e%252fsecret", "/page/..\\..\\secret", "/page/%c0%ae%c0%ae/secret", "/page/vendor/../../secret",
    "/v1/datasets/../secret", "/v1/datasets/..%2fsecret/manifest", "/v1/datasets/%2e%2e/manifest",
    "/v1/datasets/secret", "/v1/datasets/secret/manifest", "/v1/datasets/train%2f..%2fsecret/manifest",
    "/v1/datasets/train%00/manifest", "/v1/datasets/train/shards/..%2f..%2fsecret/data",
    "/v1/datasets/train/shards/7/data", "/v1/datasets/train/shards/7/manifest", "/v1/datasets/train/shards/%30%78/data",
    "/v1/datasets/train/shards/0/data?file=../../../secret", "/v1/datasets/train/shards/0/data?file=secret",
    "/v1/datasets/train/samples/../../secret", "/v1/runs/..%2f..%2fsecret/metrics", "/v1/runs/secret/metrics",
    "http://elsewhere/../secret", "//secret", "/" + "a" * 60_000, "/v1/datasets/" + "%2e" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=range(len(TARGETS)))
def test_no_target_leads_outside(service: tuple[str, int], target: str) -> None:
    status, answer = _ask(
        service[0], f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode("latin-1")
    )
    assert 400 <= status < 500, answer[:300]
    assert SECRET not in answer


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /v1/datasets/\x00 HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n",
        b"GET /v1/datasets HTTP/1.1\r\nHost: [::1]\r\nX: \x00\r\nConnection: close\r\n\r\n",
        b"GET /v1/datasets HTTP/1.1\r\nHost: [::1]\r\nContent-Length: -1\r\nConnection: close\r\n\r\n",
        b"POST /v1/datasets HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 99999999999999999999\r\n"
        b"Connection: close\r\n\r\n",
        b"POST /v1/datasets HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"y" * (1 << 20) + b"\r\n\r\n",
    ],
    ids=["nul", "nul-header", "negative-length", "huge-length", "bad-chunk", "tls", "version", "header-of-1MiB"],
)
def test_what_is_no_request_is_refused_or_cut_off(service: tuple[str, int], request_: bytes) -> None:
    status, answer = _ask(service[0], request_)
    assert status == 0 or 400 <= status < 500, answer[:300]


def test_hostile_ranges_never_send_more_than_the_file(service: tuple[str, int]) -> None:
    url, pid = service
    path = f"{url}/v1/datasets/train/shards/0/data?file=hidden"
    size_bytes = int(httpx.head(path).headers["content-length"])
    before = _peak_bytes(pid)
    spans = [
        ",".join(["0-"] * 16), ",".join(f"{n}-" for n in range(16)), ",".join(["0-"] * 10_000), "0-" + "9" * 900,
        "-" + "9" * 19, ",".join(f"{n * 2}-{n * 2}" for n in range(16)), "9" * 19 + "-", "0-0,-1,5-" + "4" * 19, "--1",
    ]  # fmt: skip
    for span in spans:
        answer = httpx.get(path, headers={"Range": f"bytes={span}"}, timeout=60)
        assert answer.status_code in (200, 206, 416, 431), span
        assert len(answer.content) <= size_bytes + 16 * 300, span
    assert _peak_bytes(pid) - before <= GROWTH_LIMIT_BYTES


def test_body_of_100_MB_is_refused_before_it_is_kept(service: tuple[str, int]) -> None:
    url, pid = service
    before = _peak_bytes(pid)
    head = b"POST /v1/datasets HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    for framing in (f"Content-Length: {BODY_BYTES}\r\n\r\n".encode(), b"Transfer-Encoding: chunked\r\n\r\n"):
        with _connect(url) as connection:
            connection.sendall(head + framing)
            try:
                for _ in range(BODY_BYTES // 0x10000):
                    connection.sendall(piece if b"chunked" in framing else b" " * 0x10000)
            except OSError:
                pass  # cut off while it still sent: that is what is asked for
            try:
                answer = connection.recv(4096)
            except OSError:
                answer = b""
        assert answer == b"" or b" 413 " in answer.split(b"\r\n")[0]
    assert httpx.post(f"{url}/v1/datasets", content=b" " * (2 << 20)).status_code == 413
    assert _peak_bytes(pid) - before <= GROWTH_LIMIT_BYTES


def test_trailers_that_never_end_are_cut_off(service: tuple[str, int]) -> None:
    url, pid = service
    before = _peak_bytes(pid)
    head = b"POST /v1/datasets HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    trailers = b"".join(b"X%d: " % number + b"y" * 1000 + b"\r\n" for number in range(100))
    with _connect(url) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n")
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            connection.sendall(trailers * (BODY_BYTES // len(trailers)))
    assert _peak_bytes(pid) - before <= GROWTH_LIMIT_BYTES


def test_pages_that_nobody_asked_for_before_are_not_kept_for_ever(service: tuple[str, int]) -> None:
    url, pid = service
    page = f"{url}/v1/datasets/many/shards?limit=1000"
    assert len(httpx.get(page, timeout=60).json()["items"]) == 1000
    pages = (page + f"&include=manifest&max_tokens={10**6 + number}" for number in range(80))
    for asked in itertools.islice(pages, 12):
        assert len(httpx.get(asked, timeout=60).json()["items"]) > 100
    before = _peak_bytes(pid)
    sent_bytes = sum(len(httpx.get(asked, timeout=60).content) for asked in pages)
    assert sent_bytes > GROWTH_LIMIT_BYTES
    assert _peak_bytes(pid) - before <= GROWTH_LIMIT_BYTES


def test_slow_and_vanishing_callers_hold_up_nobody(service: tuple[str, int]) -> None:
    """200 connections that stop in the middle of a request or of a download, and 100 that drop it."""
    url, pid = service
    before = _peak_bytes(pid)
    data = b"GET /v1/datasets/train/shards/0/data?file=hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with ExitStack() as held:
        for number in range(200):
            connection = held.enter_context(_connect(url))
            connection.sendall(data if number % 2 else data[: 10 + number % 40])
        for _ in range(100):
            with _connect(url) as connection:
                connection.sendall(data)
        for _ in range(20):
            assert httpx.get(f"{url}/v1/datasets/train/stats", timeout=20).status_code == 200
        grown_bytes = _peak_bytes(pid) - before
    assert grown_bytes <= GROWTH_LIMIT_BYTES


def test_many_callers_at_once_get_whole_files_in_flat_memory(service: tuple[str, int], root: Path) -> None:
    url, pid = service
    expected = (root / "train" / "shards" / "part-000000.hidden.arrow").read_bytes()
    before = _peak_bytes(pid)
    wrong: list[int] = []

    def pull() -> None:
        for _ in range(3):
            if httpx.get(f"{url}/v1/datasets/train/shards/0/data?file=hidden", timeout=120).content != expected:
                wrong.append(1)

    threads = [threading.Thread(target=pull) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert _peak_bytes(pid) - before <= GROWTH_LIMIT_BYTES
