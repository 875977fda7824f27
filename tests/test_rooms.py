"""The order of the rooms: imports point downwards, nothing goes in a circle, and few rooms know the large libraries."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# from the ground up; what stands together on a floor does not import each other
FLOORS: list[tuple[str, ...]] = [
    ("errors", "shown"),
    ("build", "yaml_text", "seeding", "device", "memory", "storage", "strips", "windows"),
    ("images", "schedule", "metrics", "shards", "sources"),
    ("prior", "degradations"),
    ("checkpoints", "solvers"),
    ("severity",),
    ("recipe", "active_image"),
    ("engine",),
    ("sampling", "measurement", "restored"),
    ("restorer",),
    ("loading",),
    ("tracking", "option_parser", "report", "deepinv"),
    ("pipeline", "training"),
    ("help_texts", "verbs"),
    ("cli",),
    ("__main__",),
]
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
# library → where it may be imported, at any depth of the code
KNOWS = {
    "ray": ("pipeline", "training/ray_train.py"),
    "mlflow": ("tracking",),
    "fsspec": ("storage",),
    "s3fs": ("storage",),
    "boto3": ("storage",),
    "botocore": ("storage",),
    "jsonargparse": ("option_parser.py",),
    "benchmarks": (),
    "torchvision": (),
    "deepinv": ("deepinv.py", "degradations/deepinv_physics.py"),
}


@cache
def modules(package: str) -> dict[str, Path]:
    """Module name → file."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every import of a file that runs; of `import a.b` the name is empty."""
    tree = ast.parse(path.read_text())
    checked_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in checked_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def files_of(package: str) -> dict[str, set[str]]:
    """Module → the modules of these packages that it imports."""
    known = modules("flashray") | modules("benchmarks")
    graph: dict[str, set[str]] = {}
    for module, path in modules(package).items():
        targets = {f"{base}.{name}" if f"{base}.{name}" in known else base for base, name in imports(path)}
        graph[module] = {target for target in targets if target in known and target != module}
    return graph


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_imports_point_downwards() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, targets in files_of("flashray").items()
        for target in targets
        if room_of(module) and room_of(target) and room_of(module) != room_of(target)
        if FLOOR[room_of(target)] >= FLOOR[room_of(module)]
    ]
    assert not wrong, "\n".join(wrong)


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(module) for module in modules("flashray")} - {""}
    assert rooms <= set(FLOOR), rooms - set(FLOOR)


@pytest.mark.parametrize("package", ["flashray", "benchmarks"])
def test_no_file_imports_itself_by_a_detour(package: str) -> None:
    graph = files_of(package)
    # a room's face hands on names of its own files
    faces = {module for module, path in modules(package).items() if path.name == "__init__.py"}
    try:
        TopologicalSorter({m: targets - faces for m, targets in graph.items() if m not in faces}).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


@pytest.mark.parametrize("library", KNOWS)
def test_few_rooms_know_a_library(library: str) -> None:
    allowed = tuple(str(ROOT / "flashray" / place) for place in KNOWS[library])
    wrong = [
        str(path.relative_to(ROOT))
        for path in modules("flashray").values()
        if any(module.split(".")[0] == library for module, _ in imports(path)) and not str(path).startswith(allowed)
    ]
    assert not wrong, f"{library} is imported by {wrong}"


def test_the_package_is_small() -> None:
    """The package without the laboratory; a limit to notice growth by."""
    lines = sum(len(path.read_text().splitlines()) for path in modules("flashray").values())
    assert lines <= 23_822
