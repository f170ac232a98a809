"""What another site's page can make a browser send is refused: foreign names for this service, and foreign writes."""

from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from api_serving import serving
from arwkv_api.config import LOOPBACK_HOSTS, ServeConfig, Settings
from store_examples import write_example_dataset


def test_host_of_another_site_is_refused_and_nothing_is_deleted(server: str) -> None:
    for method, path in (("GET", "/v1/datasets"), ("DELETE", "/v1/datasets/train"), ("GET", "/"), ("GET", "/health")):
        answer = httpx.request(method, server + path, headers={"Host": "evil.example"})
        assert answer.status_code == 421
        assert answer.headers["content-type"] == "application/problem+json"
        assert "--trusted-host" in answer.json()["detail"]
    assert httpx.get(f"{server}/v1/datasets/train").status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]:80", "[::1]"])
def test_loopback_is_trusted_by_every_name(server: str, host: str) -> None:
    assert httpx.get(f"{server}/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["", "localhost.evil.example", "localhost@evil.example", "10.0.0.7", "[::1", "localhost/", "[::2]", "a b"]
)
def test_names_like_trusted_ones_are_not(server: str, host: str) -> None:
    assert httpx.get(f"{server}/health", headers={"Host": host}).status_code in (400, 421)


def _trusted(root: Path, host: str, *names: str) -> tuple[str, ...]:
    config = ServeConfig(
        root=((str(root),),), host=host, trusted_host=(names,), api_key="secret", database="sqlite:///x"
    )
    return config.settings().trusted_hosts


def test_bound_and_named_hosts_are_trusted(tmp_path: Path) -> None:
    assert _trusted(tmp_path, "127.0.0.1") == (*LOOPBACK_HOSTS, "127.0.0.1")
    assert _trusted(tmp_path, "10.1.2.3", "Shards.example") == (*LOOPBACK_HOSTS, "10.1.2.3", "shards.example")


def test_service_on_all_addresses_answers_to_each_but_to_no_foreign_name(tmp_path: Path) -> None:
    write_example_dataset(tmp_path / "root" / "train")
    flags = ["--root", str(tmp_path / "root"), "--host", "0.0.0.0", "--trusted-host", "api", "--public-read"]
    with serving(*flags, cache=tmp_path, environment={"ARWKV_API_KEY": "secret"}) as (url, _):
        statuses = {
            host: httpx.get(f"{url}/v1/datasets", headers={"Host": host}).status_code
            for host in ("10.0.0.7:8000", "[fe80::1]:8000", "api:8000", "evil.example")
        }
    assert list(statuses.values()) == [200, 200, 200, 421]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 204),
        ({"Origin": "http://testserver"}, 204),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://behind-a-proxy.example"}, 204),
        ({"Sec-Fetch-Site": "none"}, 204),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://testserver:3000"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://testserver"}, 403),
    ],
)
def test_only_the_services_own_page_may_write(client: TestClient, headers: dict[str, str], status: int) -> None:
    assert client.delete("/v1/datasets/train", headers=headers).status_code == status
    assert client.get("/v1/datasets/heldout", headers=headers).status_code == 200
    assert client.get("/v1/datasets/train").status_code == (404 if status == 204 else 200)


def test_any_host_is_trusted_where_that_is_asked_for(settings: Settings, open_client: object) -> None:
    assert callable(open_client)
    client = open_client(replace(settings, trusted_hosts=("*",)))
    assert client.get("/health", headers={"Host": "anything.example"}).status_code == 200
