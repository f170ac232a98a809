"""Buckets of a real S3 server."""

import re
from collections.abc import Iterator

import pytest

from store_s3 import s3_running, use_s3


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a server that all tests share."""
    with s3_running() as address:
        yield address


@pytest.fixture
def s3_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The URI of an empty bucket of the test's own; the environment leads to the server."""
    s3fs = pytest.importorskip("s3fs")
    use_s3(monkeypatch, s3_server)
    bucket = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:60]
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(bucket)
    return f"s3://{bucket}"
