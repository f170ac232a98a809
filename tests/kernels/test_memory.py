"""Freed memory that the C library keeps for the next tensors."""

import subprocess
import sys

FRESH_PAGES = """
import resource, sys, torch
from arwkv_kernels.memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("mallopt refused an option")
torch.zeros(1 << 26)  # 256 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.zeros(1 << 24)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def fresh_pages(how: str) -> int:
    """Pages that the system provided for three tensors of 64 MiB after one of 256 MiB was freed."""
    return int(
        subprocess.run([sys.executable, "-c", FRESH_PAGES, how], capture_output=True, text=True, check=True).stdout
    )


def test_tensors_reuse_the_pages_of_freed_ones() -> None:
    assert fresh_pages("keep") < 1000 < fresh_pages("return")
