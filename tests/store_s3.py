"""A real S3 server for the tests of object stores."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def s3_running() -> Iterator[str]:
    """The address of moto's server in a process of its own, speaking S3 over HTTP."""
    pytest.importorskip("moto.server")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert server.stdout is not None
    for line in server.stdout:
        if "Running on" in line:
            break
    yield line.rsplit(" ", 1)[-1].strip()
    server.terminate()
    server.wait()
    server.stdout.close()


def use_s3(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Have the environment lead to the server."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": address,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
