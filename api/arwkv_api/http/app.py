"""The application: its parts, its start and its stop."""

import gc
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any

from anyio import to_thread
from fastapi import FastAPI
from pydantic import TypeAdapter

from arwkv_api.access.keyring import Keyring
from arwkv_api.config import Settings
from arwkv_api.http import problems
from arwkv_api.http.access_log import Observe, configure_logging
from arwkv_api.http.compress import Compact
from arwkv_api.http.guard import Guard
from arwkv_api.http.hosts import Hosts
from arwkv_api.http.proxy import Proxied
from arwkv_api.http.routes import datasets, notes, operations, pages, runs, samples, shards, work
from arwkv_api.http.service import Service
from arwkv_api.index.database import connect

SETTINGS_VARIABLE = "ARWKV_API_SETTINGS"
# A start waits this long for the first scan of the roots; a longer scan continues in the background.
FIRST_SCAN_WAIT_S = 0.5
SWITCH_INTERVAL_S = 0.001

DESCRIPTION = """
Index of offline teacher-logit datasets: what is there, how far it is, its statistics, and its shards by range.
`http(s)://HOST/v1/datasets/NAME` is a dataset's address for `student train --shards`.
Every error is `application/problem+json`.
"""


class _Application(FastAPI):
    """Describes errors in the form of the responses."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            problems.describe(super().openapi())
        return super().openapi()


def create_app(settings: Settings) -> FastAPI:
    """The service for these settings. Raises UsageError if the index or the key file cannot be opened."""
    keyring = Keyring(settings.api_key, settings.keys, public_read=settings.public_read)
    service = Service(connect(settings.database), settings)
    app = _Application(
        title="ARWKV datasets",
        version="1",
        description=DESCRIPTION.strip(),
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
        servers=[{"url": settings.path_prefix}] if settings.path_prefix else None,
        generate_unique_id_function=lambda route: route.name + ("_head" if route.methods == {"HEAD"} else ""),
    )
    app.state.service, app.state.keyring = service, keyring
    problems.install(app)
    for routes in (datasets, notes, shards, samples, runs, work, operations, pages):
        app.include_router(routes.router)
    app.mount("/page", pages.files)
    app.add_middleware(Guard, settings.request_limit_bytes, settings.requests_per_s)
    app.add_middleware(Hosts, settings.trusted_hosts)
    app.add_middleware(Compact)
    app.add_middleware(Observe)
    if settings.path_prefix or settings.trusted_proxies:
        app.add_middleware(Proxied, settings.path_prefix, [ip_network(one) for one in settings.trusted_proxies])
    return app


def create_app_from_environment() -> FastAPI:
    """The same in a worker process, which gets its settings through the environment."""
    settings = TypeAdapter(Settings).validate_json(os.environ[SETTINGS_VARIABLE])
    configure_logging(settings.log_format)
    return create_app(settings)


def settings_to_environment(settings: Settings) -> None:
    """Store the settings for worker processes."""
    os.environ[SETTINGS_VARIABLE] = TypeAdapter(Settings).dump_json(settings).decode()


def _answer_promptly() -> None:
    """Settings of the whole process that avoid pauses."""
    # Loaded modules stay in memory: searching them for garbage again and again would delay requests.
    gc.collect()
    gc.freeze()
    # A thread that decodes or scans yields sooner to one that has an answer to send.
    sys.setswitchinterval(SWITCH_INTERVAL_S)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    service.start()
    _answer_promptly()
    await to_thread.run_sync(service.scanned_once.wait, FIRST_SCAN_WAIT_S)
    try:
        yield
    finally:
        await to_thread.run_sync(service.stop)
