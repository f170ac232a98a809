"""As much of the Hub's API in one thread as is asked for to read and write one dataset repository, `user/name`."""

import base64
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

API, FILES = "/api/datasets/user/name", "/datasets/user/name/resolve/main/"


def body_of(request: http.server.BaseHTTPRequestHandler) -> bytes:
    """The body that a client sent, whole or in chunks."""
    if "Content-Length" in request.headers:
        return request.rfile.read(int(request.headers["Content-Length"]))
    body = b""
    while size := int(request.rfile.readline(), 16):
        body += request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()
    return body


@contextmanager
def hub_of(folder: Path, commits: list[list[str]] | None = None) -> Iterator[str]:
    """The endpoint (HF_ENDPOINT) at which the folder is the repository, until the end of the block.

    `commits` gets the files' names of each commit that is made.
    """
    made: list[list[str]] = [] if commits is None else commits

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            below = folder / path.removeprefix(f"{API}/tree/main").strip("/")
            if path.startswith(f"{API}/tree/main") and below.is_dir():
                return self._send(200, [_entry(folder, found) for found in sorted(below.iterdir())])
            if path in (API, f"{API}/revision/main"):
                return self._send(200, {"id": "user/name", "sha": f"{len(made):040d}", "siblings": []})
            if path.startswith(FILES) and (file := folder / path.removeprefix(FILES)).is_file():
                content = file.read_bytes()
                first, last = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")
                return self._send(206, content[int(first) : int(last) + 1 if last else None])
            return self._send(404, {"error": "not found"})

        def do_POST(self) -> None:
            body = body_of(self)
            if self.path == f"{API}/preupload/main":
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                return self._send(200, {"files": files})
            if self.path == f"{API}/commit/main":
                return self._commit([json.loads(line) for line in body.splitlines()])
            form = urllib.parse.parse_qs(body.decode())
            found = [folder / path for path in form["paths"] if (folder / path).exists()]
            return self._send(200, [_entry(folder, path) for path in found])

        def _commit(self, lines: list[dict[str, Any]]) -> None:
            header, *files = lines
            if header["value"]["parentCommit"] != f"{len(made):040d}":
                return self._send(412, {"error": "a commit has happened since"})
            for file in files:
                place = folder / file["value"]["path"]
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(base64.b64decode(file["value"]["content"]))
            made.append([file["value"]["path"] for file in files])
            return self._send(200, {"commitUrl": f"{API}/commit/1", "commitOid": f"{len(made):040d}"})

        def _send(self, status: int, answer: Any) -> None:  # bytes, or what becomes JSON
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if status == 404:
                self.send_header("X-Error-Code", "EntryNotFound")
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
