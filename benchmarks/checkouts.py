"""Running the code of a checkout, which need not be this one."""

import os
from pathlib import Path

PACKAGES = ("store", "producer", "student", "kernels", "api")


def environment_of(checkout: Path) -> dict[str, str]:
    """In which Python finds the packages of the checkout."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(checkout / package) for package in PACKAGES)}
