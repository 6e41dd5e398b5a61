"""Bringing data sets to this machine and finding them again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adctl import paths
from adctl.data import demo
from adctl.errors import UsageError, unknown_name


@dataclass(frozen=True)
class Fetched:
    name: str
    root: Path
    categories: tuple[str, ...]
    licence: str
    already: bool


def fetch_dataset(name: str, *, categories: Sequence[str] = (), source: Path | None = None, accept_license: bool = False,
    progress: Callable[[int, int], None] | None = None, force: bool = False) -> Fetched:
    if name != "demo":
        raise unknown_name("data set", name, ["demo"])
    root = paths.data_dir() / "demo"
    demo.generate(root, progress=progress)
    return Fetched("demo", root, ("zipper",), "CC0", False)


def find_dataset(category: str | None, dataset: str | None) -> Path:
    root = paths.data_dir()
    names = [dataset] if dataset else sorted((p.name for p in root.iterdir() if p.is_dir()), key=lambda n: n == "demo") if root.is_dir() else []
    for name in names:
        if category is None and (root / name).is_dir():
            return root / name
        if category and (root / name / category / "train").is_dir():
            return root / name
    raise UsageError(f"No fetched data set has the category '{category}'.", f"adctl fetch mvtec --category {category}, or adctl fetch demo.")
