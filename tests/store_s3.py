"""A real S3 server for the tests of object stores."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def s3_running(*flags: str) -> Iterator[str]:
    """The address of moto's server in a process of its own, speaking S3 over HTTP; this file's flags change it."""
    if importlib.util.find_spec("moto") is None:  # not imported: vLLM does not start in a process with werkzeug
        pytest.skip("no S3 server for the tests of object stores (pip install 'moto[s3,server]')")
    server = subprocess.Popen(
        [sys.executable, __file__, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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


def _serve(*, without_condition: bool, ignoring_conditions: bool) -> None:
    """Moto's server; `without_condition`, its refusals do not name the condition that failed, as of many S3 stores;
    `ignoring_conditions`, it creates an object that is there, as some do."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication
    from moto.s3.exceptions import PreconditionFailed, S3ClientError
    from moto.server import main
    from werkzeug.serving import WSGIRequestHandler

    if ignoring_conditions:
        answer = DomainDispatcherApplication.__call__

        def unconditional(self: Any, environ: dict[str, Any], start: Any) -> Any:
            return answer(self, {name: value for name, value in environ.items() if name != "HTTP_IF_NONE_MATCH"}, start)

        DomainDispatcherApplication.__call__ = unconditional
    if without_condition:
        PreconditionFailed.__init__ = lambda self, condition: S3ClientError.__init__(self, "it did not hold")
    # Nobody reads a line for each request: a full pipe would stop the server.
    WSGIRequestHandler.log_request = lambda *_, **__: None
    main(["-p", "0"])


if __name__ == "__main__":
    _serve(without_condition="--without-condition" in sys.argv, ignoring_conditions="--ignoring-conditions" in sys.argv)
