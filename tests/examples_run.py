"""Run an example as `python examples/NAME` does, or import from it."""

import contextlib
import io
import json
import runpy
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


class Ended(NamedTuple):
    """What a command left."""

    code: int
    stdout: str
    stderr: str


@contextlib.contextmanager
def examples_importable() -> Iterator[None]:
    """Inside the block, modules of `examples/` are imported by their names, which outside may be those of others."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        try:
            yield
        finally:
            for name in set(sys.modules) - before:
                if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(EXAMPLES)):
                    del sys.modules[name]


def end_example(name: str, *arguments: str) -> Ended:
    """The example run to its end, in this process, which has loaded torch and transformers already."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        examples_importable(),
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")
        patch.setattr(sys, "argv", [str(EXAMPLES / name), *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    code = ended.value.code
    assert isinstance(code, int)
    return Ended(code, stdout.getvalue(), stderr.getvalue())


def run_example(name: str, *arguments: str) -> Any:
    """What it prints with `--json`."""
    ended = end_example(name, *arguments, "--json")
    assert ended.code == 0, ended.stderr
    return json.loads(ended.stdout)
