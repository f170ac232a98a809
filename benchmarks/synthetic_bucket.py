"""An S3 server of one dataset with any number of parts, whose objects are made when they are asked for.

Bucket `many` holds dataset.json, the summary of manifests, and for each part its manifest and its data. It answers
ListObjectsV2, GET with a range and HEAD, and counts its requests by kind (GET /requests).
"""

import collections
import multiprocessing
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import xxhash
from aiohttp import web

from arwkv_store import ShardManifest
from arwkv_store.format.layout import DATASET_FILE, data_file_name, manifest_name
from arwkv_store.format.summary import SUMMARY_FILE, Summary, mark

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from store_examples import example_dataset_info, write_example_dataset

BUCKET = "many"
SAMPLES_PER_PART = 4
PAGE_OBJECTS = 1000
OF_A_PART = ("data", "manifest")
"""Its objects, in the order of their names."""


class Bucket:
    """The objects, in the order of their names: dataset.json, the summary, two of each part."""

    def __init__(self, parts: int) -> None:
        self.parts = parts
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "one"
            info = example_dataset_info(samples=SAMPLES_PER_PART * parts, samples_per_part=SAMPLES_PER_PART, layers=())
            write_example_dataset(folder, info=info, parts=[0])
            self.dataset = (folder / DATASET_FILE).read_bytes()
            self.data = (folder / "shards" / data_file_name(0, "rows")).read_bytes()
            raw = (folder / "shards" / manifest_name(0)).read_bytes()
        self.first = ShardManifest.from_bytes(raw, "part 0").named(addressed=True)
        self._sha256 = self.first.files["rows"].sha256
        self._shortest_bytes = len(self._made(0)) - self._digits(0)
        self.summary = self._summary()

    def manifest(self, part: int) -> bytes:
        """Of any part; its sample ids are its own, its data are part 0's."""
        return self._made(part)

    def _made(self, part: int) -> bytes:
        file = self.first.files["rows"]
        changes = {
            "part": part,
            "files": {"rows": file.model_copy(update={"name": data_file_name(part, "rows", file.sha256)})},
            "first_sample_id": SAMPLES_PER_PART * part,
            "last_sample_id": SAMPLES_PER_PART * (part + 1) - 1,
        }
        return self.first.model_copy(update=changes).to_bytes()

    @staticmethod
    def _digits(part: int) -> int:
        numbers = (part, SAMPLES_PER_PART * part, SAMPLES_PER_PART * (part + 1) - 1)
        return sum(len(str(number)) for number in numbers)

    def size_bytes(self, part: int) -> int:
        """Of a part's manifest."""
        return self._shortest_bytes + self._digits(part)

    def _summary(self) -> bytes:
        parts = np.arange(self.parts, dtype=np.int64)
        marks = [
            mark(self.size_bytes(part), xxhash.xxh3_64_intdigest(_etag(f"manifest{part}").encode()))
            for part in range(self.parts)
        ]
        rows, tokens = np.full_like(parts, self.first.rows), np.full_like(parts, self.first.tokens)
        summary = Summary(parts, rows, tokens, np.array(marks, np.int64))
        return summary.to_bytes(self.first.dataset_hash)

    def names(self, after: str) -> Iterator[tuple[str, str, int]]:
        """(name, ETag, bytes) of each object behind a name."""
        for name, content in ((DATASET_FILE, self.dataset), (SUMMARY_FILE, self.summary)):
            if name > after:
                yield name, _etag(name), len(content)
        begin = int(after[len("shards/part-") :][:6]) if after.startswith("shards/part-") else 0
        for part in range(begin, self.parts):
            files = {"data": data_file_name(part, "rows", self._sha256), "manifest": manifest_name(part)}
            sizes = {"data": len(self.data), "manifest": self.size_bytes(part)}
            for kind in OF_A_PART:
                name = f"shards/{files[kind]}"
                if name > after:
                    yield name, _etag(f"{kind}{part}"), sizes[kind]

    def content(self, name: str) -> tuple[str, bytes] | None:
        """(kind, bytes) of an object."""
        if name == DATASET_FILE:
            return "dataset.json", self.dataset
        if name == SUMMARY_FILE:
            return "summary", self.summary
        part = name[len("shards/part-") :][:6]
        if not name.startswith("shards/part-") or not part.isdigit() or int(part) >= self.parts:
            return None
        return ("manifest", self.manifest(int(part))) if name.endswith(".json") else ("data", self.data)


def _etag(what: str) -> str:
    return f'"{xxhash.xxh3_128_hexdigest(what.encode())}"'


def _application(bucket: Bucket) -> web.Application:
    counted: collections.Counter[str] = collections.Counter()

    async def answer(request: web.Request) -> web.StreamResponse:
        name = request.path.removeprefix(f"/{BUCKET}").removeprefix("/")
        if request.path == "/requests":
            return web.json_response(counted)
        if "list-type" in request.query:
            counted["list"] += 1
            return web.Response(text=_page(bucket, request.query), content_type="application/xml")
        found = bucket.content(name)
        if found is None:
            counted["absent"] += 1
            return web.Response(
                status=404, text="<Error><Code>NoSuchKey</Code></Error>", content_type="application/xml"
            )
        kind, content = found
        counted[kind if request.method == "GET" else f"head {kind}"] += 1
        headers = {"ETag": _etag(name), "Accept-Ranges": "bytes", "Last-Modified": "Sun, 01 Nov 2026 00:00:00 GMT"}
        if asked := request.headers.get("Range"):
            start, _, end = asked.removeprefix("bytes=").partition("-")
            last = min(int(end or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
            return web.Response(status=206, body=content[int(start) : last + 1], headers=headers)
        return web.Response(body=content, headers=headers)

    application = web.Application()
    application.router.add_route("*", "/{any:.*}", answer)
    return application


def _page(bucket: Bucket, query: "web.BaseRequest.query") -> str:  # type: ignore[name-defined]
    prefix, after = query.get("prefix", ""), query.get("continuation-token") or query.get("start-after", "")
    limit = int(query.get("max-keys", PAGE_OBJECTS))
    found, more = [], False
    for name, etag, size_bytes in bucket.names(after):
        if not name.startswith(prefix):
            continue
        if len(found) == limit:
            more = True
            break
        found.append((name, etag, size_bytes))
    items = "".join(
        f"<Contents><Key>{escape(name)}</Key><LastModified>2026-11-01T00:00:00.000Z</LastModified>"
        f"<ETag>{escape(etag)}</ETag><Size>{size_bytes}</Size></Contents>"
        for name, etag, size_bytes in found
    )
    token = f"<NextContinuationToken>{escape(found[-1][0])}</NextContinuationToken>" if more else ""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>{BUCKET}</Name>'
        f"<Prefix>{escape(prefix)}</Prefix><KeyCount>{len(found)}</KeyCount><MaxKeys>{limit}</MaxKeys>"
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{items}</ListBucketResult>"
    )


@contextmanager
def bucket_running(parts: int) -> Iterator[str]:
    """The server's address; it runs in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(parts, port), daemon=True)
    process.start()
    try:
        while not _answers(port):
            assert process.is_alive(), "the bucket's server ended"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.join()


def _serve(parts: int, port: int) -> None:
    web.run_app(_application(Bucket(parts)), host="127.0.0.1", port=port, print=None, access_log=None)


def _answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0
