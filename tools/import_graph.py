"""Print which room imports which, lowest first, as Mermaid text. Exits with 1 where modules form a circle.

python tools/import_graph.py
"""

import ast
import sys
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("kernels", "store", "producer", "student", "api")


def module_graph(package: Path) -> dict[str, set[str]]:
    """By module of a package the modules of it that it imports at run time, inside functions too."""
    files = {".".join(_module_parts(file.relative_to(package.parent))): file for file in package.rglob("*.py")}
    return {module: set(_imports(ast.parse(file.read_text()), files)) - {module} for module, file in files.items()}


def _module_parts(file: Path) -> tuple[str, ...]:
    return file.parent.parts if file.name == "__init__.py" else file.with_suffix("").parts


def _imports(tree: ast.AST, modules: Collection[str]) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.ImportFrom) and (module := node.module or "") in modules:
            inner = [f"{module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else module for name in inner)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        yield from _imports(node, modules)


def room(module: str) -> str:
    """`store/format` for `arwkv_store.format.seal`; a module outside the rooms counts as the package itself."""
    package, *inner = module.removeprefix("arwkv_").split(".")
    rooms = (ROOT / package / f"arwkv_{package}").glob("*/__init__.py")
    return f"{package}/{inner[0]}" if inner and inner[0] in {path.parent.name for path in rooms} else package


def room_graph() -> dict[str, set[str]]:
    """By room the rooms of the same package that it imports. Raises CycleError where modules form a circle."""
    graph: dict[str, set[str]] = {}
    for package in PACKAGES:
        modules = module_graph(ROOT / package / f"arwkv_{package}")
        TopologicalSorter(modules).prepare()
        for module, imported in modules.items():
            if "/" in (own := room(module)):
                graph.setdefault(own, set()).update(other for other in map(room, imported) if "/" in other)
    return {own: others - {own} for own, others in graph.items()}


def main() -> None:
    """Print the graph."""
    try:
        rooms = room_graph()
        order = list(TopologicalSorter(rooms).static_order())
    except CycleError as error:
        sys.exit(f"circle: {' imports '.join(reversed(error.args[1]))}")
    print("flowchart BT")
    for package in PACKAGES:
        print(f"    subgraph {package}")
        for own in (name for name in order if name.startswith(f"{package}/")):
            print(f"        {own}[{own.partition('/')[2]}]")
            for other in sorted(rooms[own]):
                print(f"        {own} --> {other}")
        print("    end")


if __name__ == "__main__":
    main()
