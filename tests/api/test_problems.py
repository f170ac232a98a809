"""Every error has the one shape, and says the way out."""

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError, TimeoutError

from arwkv_api.http.compress import accepted_encoding
from arwkv_api.http.problems import MEDIA_TYPE, Problem


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/page/nowhere", 404),
        ("PUT", "/v1/datasets", 405),
        ("GET", "/v1/datasets/none", 404),
        ("GET", "/v1/datasets?limit=0", 422),
        ("GET", "/v1/datasets?sort=colour", 422),
        ("GET", "/v1/datasets?cursor=x", 400),
        ("GET", "/v1/datasets/train/shards/-1", 422),
        ("GET", "/v1/datasets/train/shards/0/data?file=secret", 422),
        ("GET", "/v1/datasets/train/samples/20", 404),
        ("GET", "/v1/runs/none/metrics", 404),
        ("POST", "/v1/datasets", 422),
    ],
)
def test_error_is_a_problem_document(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == MEDIA_TYPE
    problem = Problem.model_validate(answer.json())
    assert problem.status == status
    assert problem.instance == path.partition("?")[0]
    assert problem.request_id == answer.headers["x-request-id"]
    assert problem.detail


def test_unaccepted_value_is_named_with_its_place(client: TestClient) -> None:
    problem = client.get("/v1/datasets?limit=5000").json()
    (field,) = problem["errors"]
    assert (field["where"], field["value"]) == ("query.limit", "'5000'")
    assert "1000" in field["message"]


def test_unexpected_failure_tells_nothing_but_the_request_id(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("arwkv_api.http.routes.datasets.find_dataset", lambda *_: 1 / 0)
    answer = client.get("/v1/datasets/train")
    assert answer.status_code == 500
    assert "division" not in answer.text
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert "ZeroDivisionError" in caplog.text
    caplog.clear()


@pytest.mark.parametrize("away", [OperationalError("SELECT", {}, OSError("gone")), TimeoutError("pool")])
def test_index_out_of_reach_is_said_and_may_be_asked_again(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, away: Exception
) -> None:
    def failing(*_: object) -> None:
        raise away

    monkeypatch.setattr("arwkv_api.http.routes.datasets.find_dataset", failing)
    answer = client.get("/v1/datasets/train")
    assert (answer.status_code, answer.headers["content-type"]) == (503, MEDIA_TYPE)
    assert answer.json()["detail"] == "the index cannot be reached; try again"
    assert answer.headers["retry-after"] == "1"


def test_json_has_an_etag_and_is_not_sent_twice(client: TestClient) -> None:
    first = client.get("/v1/datasets/train/stats")
    again = client.get("/v1/datasets/train/stats", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        ("gzip", "gzip"),
        ("gzip, zstd", "zstd"),
        ("zstd;q=0, gzip", "gzip"),
        ("br", None),
        ("", None),
        ("GZIP;q=0.5", "gzip"),
    ],
)
def test_json_is_compressed_as_the_caller_takes_it(client: TestClient, header: str, encoding: str | None) -> None:
    assert accepted_encoding(header) == encoding
    answer = client.get("/openapi.json", headers={"Accept-Encoding": header or "identity"})
    assert answer.headers.get("content-encoding") == encoding
    assert "Accept-Encoding" in answer.headers["vary"]
    if encoding != "zstd":
        assert answer.json()["openapi"]


def test_shards_are_never_compressed(client: TestClient) -> None:
    answer = client.get("/v1/datasets/train/shards/0/data", headers={"Accept-Encoding": "gzip, zstd"})
    assert "content-encoding" not in answer.headers
