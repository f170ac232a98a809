"""A dataset service in one thread for tests of the remote reader: the HTTP contract, with faults on demand."""

import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from arwkv_store import open_dataset

Fault = Callable[[str, bytes], tuple[int, bytes]]
"""From path and body about to be sent to (status, the bytes really sent)."""


class ExampleService:
    """Serves one dataset folder at `/v1/datasets/example`; `fault` may cut or refuse answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fault: Fault = lambda path, body: (200, body)
        self.requests: list[str] = []
        self.keys: list[str | None] = []
        self.redirect_to: str | None = None
        self.ignore_range = False
        self.page_items = 2
        self.connections = 0
        self.retry_after = ""
        self.looks_until_indexed = 0
        self.key: str | None = None
        self.uri = ""

    def answer(self, path: str, query: dict[str, str]) -> bytes | None:
        """The whole body for a path below the dataset's, None where there is none."""
        shards = self.folder / "shards"
        if path == "/manifest":
            return (self.folder / "dataset.json").read_bytes()
        if path == "/shards":
            return self._page(query)
        if path == "/corpus":
            report = self.folder / "corpus.json"
            return json.dumps({"report": json.loads(report.read_text()) if report.exists() else None}).encode()
        if path == "/notes":
            notes = self.folder / "notes.json"
            return notes.read_bytes() if notes.exists() else b"{}"
        _, _, part, what = path.split("/")
        kind = query.get("file", "rows")
        name = {"manifest": "json", "data": "arrow" if kind == "rows" else "hidden.arrow"}[what]
        file = shards / f"part-{int(part):06d}.{name}"
        return file.read_bytes() if file.exists() else None

    def state(self) -> bytes:
        """The dataset at a glance: being indexed for so many looks, ready from then on."""
        shards = list(open_dataset(self.folder).shards) if self.looks_until_indexed == 0 else []
        state = "indexing" if self.looks_until_indexed else "ready"
        self.looks_until_indexed = max(0, self.looks_until_indexed - 1)
        answer = {"state": state, "shards": len(shards), "tokens": sum(shard.tokens for shard in shards)}
        return json.dumps(answer).encode()

    def _page(self, query: dict[str, str]) -> bytes:
        names = sorted((self.folder / "shards").glob("part-*.json"))
        first = int(query.get("cursor", 0))
        last = min(first + self.page_items, len(names))
        items = [{"part": int(path.stem[5:]), "manifest": path.read_text()} for path in names[first:last]]
        following = str(last) if last < len(names) else None
        return json.dumps({"items": items, "next_cursor": following, "committed": len(names)}).encode()


def parts_fetched(service: ExampleService) -> set[int]:
    """The parts of whose files bytes were asked for."""
    return {int(part) for path in service.requests for part in re.findall(r"/shards/(\d+)/data", path)}


@contextmanager
def served(folder: Path) -> Iterator[ExampleService]:
    """The service, running until the end of the block."""
    service = ExampleService(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            service.requests.append(f"{self.path} {self.headers.get('Range', '')}".strip())
            service.keys.append(self.headers.get("Authorization"))
            if service.redirect_to is not None:
                self.send_response(302)
                self.send_header("Location", service.redirect_to + self.path)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            if service.key and self.headers.get("Authorization") != f"Bearer {service.key}":
                return self._send(401, b'{"title": "no key"}', 0)
            query = dict(urllib.parse.parse_qsl(url.query))
            body = None
            if url.path == "/v1/datasets/example":
                return self._send(*service.fault(self.path, service.state()), 0)
            if url.path.startswith("/v1/datasets/example/"):
                body = service.answer(url.path.removeprefix("/v1/datasets/example"), query)
            if body is None:
                return self._send(404, b'{"title": "Not Found"}', 0)
            status, offset = 200, 0
            if (header := self.headers.get("Range")) and not service.ignore_range:
                first, last = header.removeprefix("bytes=").split("-")
                status, offset, body = 206, int(first), body[: int(last) + 1 if last else None]
            changed, sent = service.fault(self.path, body[offset:])
            return self._send(status if changed == 200 else changed, sent, len(body) - offset - len(sent))

        def do_POST(self) -> None:
            service.requests.append(f"POST {self.path}")
            if self.path != "/v1/datasets/example/reindex":
                return self._send(404, b'{"title": "Not Found"}', 0)
            service.looks_until_indexed = 2
            return self._send(*service.fault(self.path, service.state()), 0)

        def _send(self, status: int, body: bytes, missing: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) + max(missing, 0)))
            if status == 503 and service.retry_after:
                self.send_header("Retry-After", service.retry_after)
            self.end_headers()
            self.wfile.write(body)
            self.close_connection |= missing > 0

        def setup(self) -> None:
            super().setup()
            service.connections += 1

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    service.uri = f"http://127.0.0.1:{server.server_address[1]}/v1/datasets/example"
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
