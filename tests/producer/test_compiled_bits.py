"""The bits of a summary do not depend on whether its loops were just compiled or found on the disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUMMARY = """
import hashlib, torch
from arwkv_producer.numerics.compiled_summary import summarize_rows
torch.manual_seed(0)
print([hashlib.sha256(x.numpy().tobytes()).hexdigest() for x in summarize_rows(torch.randn(2000, 500) * 3, 64)])
"""


@pytest.mark.slow
def test_loops_just_compiled_and_loops_from_the_disk_agree(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    first, again = (subprocess.check_output([sys.executable, "-c", SUMMARY], env=environment) for _ in range(2))
    assert first == again
