"""As much of the Hub's API in one thread as its filesystem asks for to read one dataset repository, `user/name`."""

import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

API, FILES = "/api/datasets/user/name", "/datasets/user/name/resolve/main/"


@contextmanager
def hub_of(folder: Path) -> Iterator[str]:
    """The endpoint (HF_ENDPOINT) at which the folder is the repository, until the end of the block."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            if path.startswith(f"{API}/tree/main"):
                below = folder / path.removeprefix(f"{API}/tree/main").strip("/")
                return self._send(200, [_entry(folder, found) for found in sorted(below.iterdir())])
            if path == API:
                return self._send(200, {"id": "user/name", "sha": "1" * 40, "siblings": []})
            if path.startswith(FILES) and (file := folder / path.removeprefix(FILES)).is_file():
                content = file.read_bytes()
                first, last = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")
                return self._send(206, content[int(first) : int(last) + 1 if last else None])
            return self._send(404, {"error": "not found"})

        def do_POST(self) -> None:
            form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            found = [folder / path for path in form["paths"] if (folder / path).exists()]
            self._send(200, [_entry(folder, path) for path in found])

        def _send(self, status: int, answer: Any) -> None:  # bytes, or what becomes JSON
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    kind = {"type": "directory"} if path.is_dir() else {"type": "file", "size": path.stat().st_size}
    return {**kind, "path": str(path.relative_to(folder)), "oid": "0" * 40}
