"""Hides the output of libraries at start-up, unless the start fails."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

from arwkv_store.commands.progress import working


@contextlib.contextmanager
def output_shown_on_failure(what: str) -> Iterator[None]:
    """Hold back all output of this process on stdout and stderr, also of C libraries; an exception shows it.

    The real stderr shows `what` is being done, and for how long.
    """
    with tempfile.TemporaryFile() as held:
        sys.stdout.flush()
        sys.stderr.flush()
        stdout, stderr = os.dup(1), os.dup(2)
        os.dup2(held.fileno(), 1)
        os.dup2(held.fileno(), 2)
        failed = True
        try:
            with os.fdopen(stderr, "w", closefd=False) as terminal, working(what, terminal):
                yield
            failed = False
        except KeyboardInterrupt:
            failed = False
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            os.close(stdout)
            os.close(stderr)
            if failed:
                held.seek(0)
                sys.stderr.write(held.read().decode(errors="replace"))
