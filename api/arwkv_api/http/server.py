"""Runs the application: one or several processes on one socket, from start to a clean end."""

import json
import logging
import os
import signal
import socket
import sys
import tempfile

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from arwkv_api.access.keyring import Keyring
from arwkv_api.config import ServeConfig, Settings
from arwkv_api.http.access_log import configure_logging
from arwkv_api.http.app import create_app, settings_to_environment
from arwkv_api.http.protocol import BoundedHttp, raise_descriptor_limit
from arwkv_api.index.database import connect
from arwkv_store.errors import UsageError

log = logging.getLogger("arwkv_api.server")

KEY_ADVICE = "set ARWKV_API_KEY instead, or use --keys FILE"
# Connections that may wait for a worker.
BACKLOG = 2048


def run(config: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT, then let running transfers finish. Raises UsageError if it cannot start."""
    settings = config.settings()
    configure_logging(settings.log_format)
    if config.api_key is not None:
        log.warning("--api-key: every user of this machine can read it in the list of processes; %s", KEY_ADVICE)
    raise_descriptor_limit()
    listening = _bind(config.host, config.port)
    url = _url(config.host, listening)
    # An error is reported here once, not by each worker again.
    app = _application(settings, config.workers)
    # uvicorn raises the signal again when it ends; by then it was handled.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if app is not None:
        _Server(_uvicorn(app, config), url, config.json).run([listening])
        return
    settings_to_environment(settings)
    with tempfile.TemporaryDirectory(prefix="arwkv-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        _announce(url, config.json)
        Multiprocess(_uvicorn("arwkv_api.http.app:create_app_from_environment", config), sockets=[listening]).run()


def _application(settings: Settings, workers: int) -> FastAPI | None:
    """The application; None if workers create their own, after the settings were checked here."""
    if workers == 1:
        return create_app(settings)
    Keyring(settings.api_key, settings.keys)
    connect(settings.database).dispose()
    return None


def _uvicorn(app: FastAPI | str, config: ServeConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        factory=isinstance(app, str),
        http=BoundedHttp,
        ws="none",
        workers=config.workers,
        log_config=None,
        timeout_graceful_shutdown=config.shutdown_timeout_s,
        server_header=False,
        backlog=BACKLOG,
        # Forwarded headers are ignored: any caller could set them.
        proxy_headers=False,
    )


class _Server(uvicorn.Server):
    """Prints its address once it listens."""

    def __init__(self, config: uvicorn.Config, url: str, as_json: bool) -> None:
        super().__init__(config)
        self._url, self._as_json = url, as_json

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            _announce(self._url, self._as_json)


def _announce(url: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"url": url, "pid": os.getpid()}), flush=True)
    else:
        print(f"serving {url}  (page {url}/, documentation {url}/docs); stop with Ctrl-C", file=sys.stderr, flush=True)


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise UsageError(f"--host {host} --port {port}: {error.strerror}; choose another, or --port 0") from error
    listening.listen(BACKLOG)
    listening.set_inheritable(True)
    return listening


def _url(host: str, listening: socket.socket) -> str:
    port = listening.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
