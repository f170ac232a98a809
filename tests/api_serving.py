"""`api serve` as a process of its own, for tests that need the real thing."""

import atexit
import contextlib
import functools
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preloaded import preloaded


@functools.cache
def python_with_api() -> list[str]:
    """Words that start Python with the service loaded; made once a session."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(preloaded("arwkv_api.http.app", "arwkv_api.http.server", "alembic.command"))


@contextmanager
def serving(
    *flags: str, cache: Path, environment: dict[str, str] | None = None, ready_s: float = 30.0
) -> Iterator[tuple[str, int]]:
    """`api serve` as its own process; gives its address and process id, and ends it with SIGTERM, cleanly."""
    command = [*python_with_api(), "-m", "arwkv_api", "serve", "--port", "0", "--json", *flags]
    variables = {**os.environ, "XDG_CACHE_HOME": str(cache), **(environment or {})}
    cache.mkdir(parents=True, exist_ok=True)
    log = cache / "api.log"  # a file: nobody empties a pipe while the test asks
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=variables)
    assert process.stdout is not None
    with process.stdout:
        line = process.stdout.readline()
        try:
            assert line, log.read_text()
            said = json.loads(line)
            _wait_until_ready(said["url"], ready_s)
            yield said["url"], said["pid"]
        finally:
            process.terminate()
            process.wait(timeout=60)
    assert process.returncode == 0, log.read_text()
    assert "Traceback" not in log.read_text()


def _wait_until_ready(url: str, ready_s: float) -> None:
    for _ in range(int(10 * ready_s)):
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(f"{url}/ready", timeout=60):
            return
        time.sleep(0.1)
    raise AssertionError(f"{url}/ready: not within {ready_s} s")
