"""The locks that `make setup` installs say what pyproject.toml asks for, and nothing is left to resolve."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lock import LEFT_OUT, closure, installed, requirements

ROOT = Path(__file__).parents[1]


def locked(name: str) -> dict[str, str]:
    """Package to version."""
    lines = [line for line in (ROOT / "locks" / name).read_text().splitlines() if not line.lstrip().startswith("#")]
    pins = [line.partition(" ;")[0].split("==") for line in lines]
    return {canonicalize_name(package): version for package, version in pins}


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_locked_versions_are_those_that_pyproject_allows(extra: str) -> None:
    pins = locked(f"{extra}.txt")
    for wanted in map(Requirement, requirements(extra, "dev")):
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)], prereleases=True), wanted


def test_lock_holds_what_is_needed_and_nothing_else() -> None:
    needed = closure(requirements("cpu", "dev"), installed())
    assert locked("cpu.txt").keys() == needed.keys()


def test_cpu_lock_pulls_no_cuda() -> None:
    pins = locked("cpu.txt")
    assert pins["torch"].endswith("+cpu")
    assert not LEFT_OUT & pins.keys()
    assert not [package for package in pins if package.startswith(("nvidia-", "cuda-"))]


def test_both_locks_train_with_the_same_versions() -> None:
    cpu, gpu = locked("cpu.txt"), locked("gpu.txt")
    for package in ("transformers", "trl", "accelerate", "datasets", "numpy", "pyarrow", "uvicorn"):
        assert cpu[package] == gpu[package]
