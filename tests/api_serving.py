"""`api serve` as a process of its own, for tests that need the real thing."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(*flags: str, cache: Path, environment: dict[str, str] | None = None) -> Iterator[tuple[str, int]]:
    """`api serve` as its own process; gives its address and process id, and ends it with SIGTERM, cleanly."""
    command = [sys.executable, "-m", "arwkv_api", "serve", "--port", "0", "--json", *flags]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache), **(environment or {})},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    try:
        assert line, process.communicate()[1]
        yield json.loads(line)["url"], process.pid
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors, errors
