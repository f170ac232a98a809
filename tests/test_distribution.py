"""Wheel and source distribution install and run outside the checkout, store and service without torch."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = (["store", "--help"], ["store", "verify", "--help"], ["api", "--help"], ["api", "serve", "--help"])


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A wheel and a source distribution of what git tracks."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    subprocess.run(["git", "checkout-index", "--all", f"--prefix={source}/"], cwd=ROOT, check=True)
    subprocess.run([sys.executable, "-m", "build", "--outdir", out, source], cwd=out, check=True, capture_output=True)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return [wheel, sdist]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["python3.11", "python3.12", "python3.13"])
def test_distributions_run_outside_the_checkout(name: str, distributions: list[Path], tmp_path: Path) -> None:
    python = shutil.which(name)
    if python is None or subprocess.run([python, "--version"], capture_output=True, check=False).returncode:
        pytest.skip(f"no {name} here")
    subprocess.run([python, "-m", "venv", "venv"], cwd=tmp_path, check=True)
    folder, environment = tmp_path / "venv" / "bin", {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    constraints = ["-c", str(ROOT / "locks" / "cpu.txt")]
    for flags in ([*constraints, str(distributions[0])], ["--no-deps", "--force-reinstall", str(distributions[1])]):
        subprocess.run([folder / "pip", "install", "-q", *flags], cwd=tmp_path, check=True)
        for command, *words in COMMANDS:
            subprocess.run([folder / command, *words], cwd=tmp_path, check=True, env=environment, capture_output=True)
        absent = "import importlib.util as u; assert u.find_spec('torch') is None and u.find_spec('vllm') is None"
        subprocess.run([folder / "python", "-c", absent], check=True, env=environment)
