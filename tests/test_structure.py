"""The structure of the package: allowed imports, and modules that must import quickly."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "adctl"

ROOMS = [
    "__main__",
    "cli",
    "api",
    "schemas",
    "testing",
    "line_demonstration",
    "line_camera",
    "demonstration",
    "serve/page",
    "serve",
    "exporting",
    "calibration",
    "tuning",
    "classification/training",
    "training",
    "reporting",
    "benchmarking",
    "evaluation",
    "line",
    "sources",
    "scoring",
    "sinks",
    "runtimes",
    "model_file",
    "classification",
    "datasets",
    "detectors",
    "detectors/components",
    "fetching",
    "fetching/converters",
    "data/checks",
    "data/datasets",
    "data",
    "tracking/migrations",
    "tracking/migrations/versions",
    "tracking",
    "tracking/loggers",
    "run_folder",
    "engine",
    "gate_files",
    "gates",
    "metrics",
    "thresholds",
    "files",
    "ray_cluster",
    "__init__",
    "signatures",
    "config",
    "options",
    "threads",
    "progress",
    "names",
    "image_sizes",
    "paths",
    "records",
    "documents",
    "reading",
    "choices",
    "errors",
]
"""Rooms (packages, and the modules at the top) from the top floor down. A room imports only rooms below it."""

HEAVY = [
    "torch",
    "cv2",
    "sklearn",
    "numpy",
    "timm",
    "torchvision",
    "pydantic",
    "h5py",
    "yaml",
    "lightning_fabric",
    "diffusers",
    "transformers",
    "sqlalchemy",
    "alembic",
    "optuna",
    "mlflow",
    "wandb",
    "fastapi",
    "uvicorn",
    "ray",
    "pyarrow",
]

COMMANDS = [
    "fetch",
    "train",
    "tune",
    "calibrate",
    "score",
    "report",
    "export",
    "bench",
    "demo",
    "schema",
    "runs",
    "serve",
]


def module_name(path: Path) -> str:
    return ".".join(("adctl", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def room_of(module: str) -> str:
    path = MODULES[module].relative_to(PACKAGE)
    return path.stem if len(path.parts) == 1 else path.parent.as_posix()


def imports_of(path: Path) -> set[str]:
    """Modules of adctl that a file imports, lazy imports included, those for type checkers alone left out."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "adctl":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
        waiting.extend(ast.iter_child_nodes(node))
    return found


def test_every_module_has_a_room():
    assert {room_of(module) for module in MODULES} == set(ROOMS)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_room_imports_only_rooms_below_it(module):
    here = room_of(module)
    for name in imports_of(MODULES[module]):
        there = room_of(name)
        assert there == here or ROOMS.index(there) > ROOMS.index(here), f"{module} imports {name} from a room above it"


def test_no_cycles_among_modules():
    graph = {name: imports_of(path) & set(MODULES) - {name} for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in graph[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_no_module_is_a_drawer():
    names = {path.stem for path in PACKAGE.rglob("*.py")} | {path.name for path in PACKAGE.iterdir()}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)], ids=" ".join)
def test_help_imports_nothing_heavy(arguments):
    program = (
        "import sys; from adctl.cli.app import run; code = run(sys.argv[1:]); "
        f"print(code, *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert done.stderr.split() == ["0"]
    assert "Usage:" in done.stdout
