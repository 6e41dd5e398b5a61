"""The shape of the house: what may import what, and what must stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "adctl"

LAYERS = [
    {"errors", "config", "records", "files", "paths", "progress", "overlap", "gates", "__init__"},
    {"data", "engine", "maps", "losses", "metrics", "calibration", "coreset", "neighbours", "backbones", "heatmaps",
     "noise", "reconstruction", "adversary", "capture"},
    {"detectors"},
    {"model_file", "runs", "scores", "score_journal", "runtimes", "predicting", "tta"},
    {
        "fetching", "datasets", "training", "calibrating", "scoring", "forecast", "reporting", "report", "exporting",
        "benchmarking", "bench", "demonstration", "resuming", "evidence", "refitting", "learning_curve", "checking",
        "watching", "comparing", "folds", "grid", "testing", "training_modes",
    },
    {"cli", "__main__"},
]  # fmt: skip
"""A part may import from its own layer and from those above it in this list."""

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
]

COMMANDS = ["fetch", "train", "calibrate", "score", "report", "export", "bench", "demo"]


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path, *, lazy: bool) -> set[str]:
    """Names of adctl's modules that a file imports; at its top only unless `lazy`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if lazy else iter(tree.body)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "adctl":
            if node.module == "adctl":
                found |= {f"adctl.{alias.name}" for alias in node.names}
            else:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("adctl.")}
    return found


def layer_of(part: str) -> int:
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    here = layer_of(part_of(path))
    for name in imports_of(path, lazy=False):
        part = name.split(".")[1]
        if part.startswith("__version"):
            continue
        assert layer_of(part) <= here, f"{path.name} imports {name} from a later layer"


def test_no_cycles_among_modules():
    modules = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(("adctl", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        modules[name] = path
    graph = {name: imports_of(path, lazy=False) & set(modules) - {name} for name, path in modules.items()}
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
