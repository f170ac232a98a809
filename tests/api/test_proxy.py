"""Addresses of callers: those that named proxies tell are believed, and no others."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from api_nginx import nginx
from api_serving import serving
from arwkv_api.config import ServeConfig, Settings
from arwkv_store import UsageError

Open = Callable[[Settings], TestClient]
LOCATION = """location / {
    proxy_pass URL;
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_set_header X-Forwarded-Proto $scheme;
}"""


def _callers(log: Path) -> list[str]:
    """Addresses of the requests that name a made-up path."""
    lines = (json.loads(line) for line in log.read_text().splitlines() if line.startswith("{"))
    return [line["client"].rsplit(":", 1)[0] for line in lines if line.get("path") == "/v1/asked"]


@pytest.mark.parametrize(("trusted", "seen"), [(["--trusted-proxy", "127.0.0.0/8"], "203.0.113.9"), ([], "127.0.0.1")])
def test_nginx_tells_the_caller_if_it_is_named(root: Path, tmp_path: Path, trusted: list[str], seen: str) -> None:
    with (
        serving("--root", str(root), "--log-format", "json", *trusted, cache=tmp_path / "cache") as (url, _),
        nginx(tmp_path / "nginx", LOCATION.replace("URL", url)) as proxy,
    ):
        # nginx adds its own caller, 127.0.0.1, which is a proxy here; what a caller wrote before that counts as told.
        httpx.get(f"{proxy}/v1/asked", headers={"X-Forwarded-For": "198.51.100.1, 203.0.113.9"})
    assert _callers(tmp_path / "cache" / "api.log") == [seen]


def test_caller_that_is_no_proxy_cannot_name_another(settings: Settings, open_client: Open) -> None:
    client = open_client(replace(settings, trusted_proxies=("192.0.2.0/24",), requests_per_s=0.1))
    statuses = [
        client.get("/v1/datasets", headers={"X-Forwarded-For": f"203.0.113.{number}"}).status_code
        for number in range(3)
    ]
    assert statuses == [200, 429, 429]


@pytest.mark.parametrize(
    "flags",
    [
        {"trusted_proxy": (("10.0.0.0/33",),)},
        {"trusted_proxy": (("proxy",),)},
        {"path_prefix": "arwkv"},
        {"path_prefix": "/a/"},
    ],
)
def test_flags_that_cannot_be_used_are_refused(root: Path, flags: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"--trusted-proxy|--path-prefix"):
        ServeConfig(root=((str(root),),), **flags).settings()  # type: ignore[arg-type]  # what the flags would give


def test_prefix_is_in_the_description(settings: Settings, open_client: Open) -> None:
    client = open_client(replace(settings, path_prefix="/arwkv"))
    assert client.get("/arwkv/openapi.json").json()["servers"] == [{"url": "/arwkv"}]
    assert client.get("/arwkv/v1/datasets").json() == client.get("/v1/datasets").json()
    assert client.get("/arwkvx/v1/datasets").status_code == 404
