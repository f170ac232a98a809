"""The part of the Hub's HTTP protocol that writes a model repository: create, preupload, LFS batch, upload, commit.

Objects are kept by their SHA-256, and compared with it, as the Hub does. Faults are injected by path.
"""

import base64
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from store_hub import body_of

TOKEN = "hf_of_the_owner"
LARGE_BYTES = 4096
"""Files from this size on, and weights, are LFS files."""


@dataclass
class Hub:
    """What the server holds, and what was asked of it."""

    endpoint: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files by path, for each OWNER/NAME."""
    private: dict[str, bool] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """LFS objects by SHA-256."""
    commits: list[list[str]] = field(default_factory=list)
    uploads: list[int] = field(default_factory=list)
    """Bytes of each LFS object that was received."""
    refuse_uploads_after: int | None = None
    """So many uploads are taken, the next ones are refused."""


@contextmanager
def model_hub() -> Iterator[Hub]:
    """A Hub at `endpoint`, until the end of the block."""
    hub = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body, path = body_of(self), urllib.parse.unquote(self.path)
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._send(401, {"error": "Invalid username or password."})
            if path == "/api/repos/create":
                return self._create(json.loads(body))
            if path == "/api/validate-yaml":
                return self._send(200, {"errors": [], "warnings": []})
            if path.endswith(".git/info/lfs/objects/batch"):
                return self._batch(json.loads(body))
            repository, _, action = path.removeprefix("/api/models/").rpartition("/main")[0].rpartition("/")
            if repository in hub.repositories:
                files = hub.repositories[repository]
                if action == "preupload":
                    return self._send(200, {"files": [_mode(one, files) for one in json.loads(body)["files"]]})
                if action == "paths-info":
                    asked = urllib.parse.parse_qs(body.decode())["paths"]
                    return self._send(200, [_entry(name, files[name]) for name in asked if name in files])
                if action == "commit":
                    return self._commit(repository, [json.loads(line) for line in body.splitlines()])
            return self._send(404, {"error": f"no {path}"})

        def do_GET(self) -> None:
            repository = self.path.removeprefix("/api/models/").removesuffix("/revision/main")
            if repository not in hub.repositories:
                return self._send(404, {"error": "not found"})
            return self._send(200, {"id": repository, "sha": f"{len(hub.commits):040x}", "siblings": []})

        def do_PUT(self) -> None:
            content, oid = body_of(self), self.path.removeprefix("/upload/")
            if hub.refuse_uploads_after is not None and len(hub.uploads) >= hub.refuse_uploads_after:
                return self._send(403, {"error": "the upload's address has expired"})
            if hashlib.sha256(content).hexdigest() != oid:
                return self._send(400, {"error": "content differs from its name"})
            hub.objects[oid] = content
            hub.uploads.append(len(content))
            return self._send(200, {})

        def _create(self, asked: dict[str, Any]) -> None:
            name = f"{asked.get('organization', 'owner')}/{asked['name']}"
            if asked.get("organization", "owner") != "owner":
                return self._send(403, {"error": f"You don't have the rights to create a model under {name}"})
            if name in hub.repositories:
                return self._send(409, {"error": "You already created this model repo", "url": self._url(name)})
            hub.repositories[name], hub.private[name] = {}, asked.get("visibility") == "private"
            return self._send(200, {"url": self._url(name)})

        def _batch(self, asked: dict[str, Any]) -> None:
            found = []
            for one in asked["objects"]:
                upload = {"upload": {"href": f"{hub.endpoint}/upload/{one['oid']}", "header": {}}}
                found.append({**one, **({} if one["oid"] in hub.objects else {"actions": upload})})
            return self._send(200, {"transfer": "basic", "objects": found})

        def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
            files = hub.repositories[name]
            values = [(line["key"], line["value"]) for line in lines if line["key"] != "header"]
            for kind, value in values:
                if kind == "lfsFile" and value["oid"] not in hub.objects:
                    return self._send(422, {"error": f"{value['path']}: its object was not uploaded"})
            for kind, value in values:
                whole = hub.objects[value["oid"]] if kind == "lfsFile" else base64.b64decode(value["content"])
                files[value["path"]] = whole
            hub.commits.append([value["path"] for _, value in values])
            oid = f"{len(hub.commits):040x}"
            return self._send(200, {"commitUrl": f"{self._url(name)}/commit/{oid}", "commitOid": oid})

        def _url(self, name: str) -> str:
            return f"{hub.endpoint}/{name}"

        def _send(self, status: int, answer: Any) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def is_large(name: str, size: int) -> bool:
    return size >= LARGE_BYTES or name.endswith((".safetensors", ".gguf"))


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _mode(asked: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
    name = asked["path"]
    large = is_large(name, asked["size"])
    held = None
    if name in files:
        held = hashlib.sha256(files[name]).hexdigest() if large else git_hash(files[name])
    return {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": held}


def _entry(name: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": name, "size": len(content), "oid": git_hash(content)}
    if is_large(name, len(content)):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "sha256": sha256, "size": len(content), "pointerSize": 130}
    return entry
