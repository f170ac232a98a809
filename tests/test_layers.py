"""The house's rules that no type checker sees: which way imports flow, and what may not be imported where."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from import_graph import module_graph

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "kernels": set[str](),
    "store": set[str](),
    "producer": {"store", "kernels"},
    "student": {"store", "kernels"},
    "api": {"store"},
}
# Rooms: which subpackages of a package another one may import. Modules beside them are open to all.
ROOMS_MAY_IMPORT = {
    "store": {
        "text": set[str](),
        "format": set[str](),
        "arrow": {"format"},
        "places": {"arrow", "format"},
        "dataset": {"places", "arrow", "format"},
        "interchange": {"dataset", "places", "arrow", "format"},
        "commands": {"interchange", "dataset", "places", "arrow", "format"},
    },
    "producer": {
        "numerics": set(),
        "teacher": {"numerics"},
        "text": {"teacher"},
        "tokens": {"text", "teacher"},
        "check": {"text", "teacher"},
        "run": {"tokens", "text", "teacher", "check"},
        "writing": {"text", "teacher", "run"},
    },
    "api": {
        "access": set[str](),
        "roots": set[str](),
        "index": {"roots"},
        "migrations": {"index"},
        "views": {"roots", "index"},
        "http": {"access", "roots", "index", "views"},
    },
    "student": {
        "model": set[str](),
        "bases": {"model"},
        "data": {"bases"},
        "losses": set[str](),
        "optimizers": set[str](),
        "run": set[str](),
        "evaluation": {"model", "data", "losses"},
        "sharding": {"model"},
        "training": {"model", "bases", "data", "losses", "optimizers", "run", "evaluation", "sharding"},
        "selection": {"model", "bases", "data", "run", "evaluation", "training"},
        "long": {"model", "bases", "data"},
        "rollout": {"model", "bases", "data"},
        "export": {"model", "bases", "run", "sharding"},
        "serving": {"model"},
        "planning": {"model", "bases", "training"},
    },
}
VLLM_ROOMS = {"producer": ["arwkv_producer/teacher", "arwkv_producer/check"], "student": ["arwkv_student/serving"]}
WITHOUT_CYCLES = ("store", "producer", "student", "api", "kernels")
MOST_FILES = 16


def imported_modules(folder: str) -> Iterator[tuple[Path, str]]:
    for file in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                yield file, node.module or ""
            elif isinstance(node, ast.Import):
                yield from ((file, alias.name) for alias in node.names)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_flow_one_way(folder: str) -> None:
    allowed = MAY_IMPORT[folder] | {folder}
    for file, module in imported_modules(folder):
        top = module.split(".")[0]
        if top.startswith("arwkv_"):
            assert top.removeprefix("arwkv_") in allowed, f"{file.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("folder", ROOMS_MAY_IMPORT)
def test_rooms_import_only_the_rooms_below_them(folder: str) -> None:
    package, rooms = f"arwkv_{folder}", ROOMS_MAY_IMPORT[folder]
    assert {path.parent.name for path in (ROOT / folder / package).glob("*/__init__.py")} == set(rooms)
    for file, module in imported_modules(f"{folder}/{package}"):
        room = file.relative_to(ROOT / folder / package).parts[0]
        top, _, inner = module.partition(".")
        if room in rooms and top == package and (other := inner.split(".")[0]) in rooms:
            assert other in rooms[room] | {room}, f"{file.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("folder", WITHOUT_CYCLES)
def test_modules_import_each_other_in_no_cycle(folder: str) -> None:
    try:
        TopologicalSorter(module_graph(ROOT / folder / f"arwkv_{folder}")).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("folder", ROOMS_MAY_IMPORT)
def test_a_room_has_few_files(folder: str) -> None:
    for room in ROOMS_MAY_IMPORT[folder]:
        files = list((ROOT / folder / f"arwkv_{folder}" / room).glob("*.py"))
        assert len(files) <= MOST_FILES, f"{room}: {len(files)} files"


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_vllm_is_imported_in_few_rooms_only(folder: str) -> None:
    importing = {
        file.relative_to(ROOT / folder).parent
        for file, module in imported_modules(folder)
        if module.split(".")[0] == "vllm"
    }
    assert importing <= {Path(room) for room in VLLM_ROOMS.get(folder, ())}


@pytest.mark.parametrize("folder", ["store", "api"])
def test_store_and_api_need_no_torch(folder: str) -> None:
    heavy = {"torch", "vllm", "transformers", "datasets"}
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & heavy, file


@pytest.mark.parametrize("folder", [".", "kernels", "store", "tests"])
def test_import_kernels_is_never_ours(folder: str) -> None:
    """A top-level package `kernels` of ours would shadow the one that transformers imports."""
    code = (
        "import importlib.util as u; s = u.find_spec('kernels'); "
        "print(s.origin if s is not None and s.origin is not None else '')"
    )
    origin = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / folder, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert not (origin and Path(origin).is_relative_to(ROOT) and ".venv" not in Path(origin).parts)
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize("command", ["producer", "store", "student", "api"])
def test_help_loads_nothing_heavy(command: str) -> None:
    """`--help` answers in under a second because torch, transformers, vLLM and datasets stay unloaded."""
    code = (
        f"import sys; sys.argv = ['{command}', '--help']\n"
        f"from arwkv_{command}.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stopped:\n    assert not stopped.code\n"
        "heavy = {'torch', 'transformers', 'vllm', 'datasets', 'numba', 'sqlalchemy', 'fastapi'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert command in done.stdout


def test_architecture_names_every_room() -> None:
    rooms = {
        f"{folder}/{path.parent.name}"
        for folder in MAY_IMPORT
        for path in (ROOT / folder).glob("arwkv_*/*/__init__.py")
    }
    assert set(re.findall(r"^\| `([a-z]+/[a-z]+)`", (ROOT / "ARCHITECTURE.md").read_text(), re.M)) == rooms
