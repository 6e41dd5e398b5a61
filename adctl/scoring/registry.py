"""Registry of products: a TOML file that says which model judges which images.

    nearest = true                     # other images belong to the product that they resemble most

    [products.zipper]
    model = "runs/zipper"              # a model file or the folder of a run, seen from this file; or the name of a run
    folders = ["zipper", "line3"]      # images below a folder of this name; without it, below a folder named zipper
    patterns = ["zip_*.png"]           # images with such names; they go before folders

What a run's name means depends on the folder of runs, so it is looked up when a model is needed.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from adctl import documents, reading, run_folder
from adctl.errors import DataError, UsageError
from adctl.tracking.models import find_model

if TYPE_CHECKING:
    from collections.abc import Mapping

SUFFIX = ".toml"

_EXAMPLE = 'Give each product one table, such as [products.zipper] with model = "runs/zipper".'


@dataclass(frozen=True)
class Product:
    """Rules of one product.

    Attributes:
        model: Model file, or folder or name of a run.
        folders: Names of folders whose images belong to it; None for its own name.
        patterns: Shell patterns of file names that belong to it.
    """

    model: str
    folders: tuple[str, ...] | None = None
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True)
class _File:
    products: dict[str, Product] = field(default_factory=dict)
    nearest: bool = False
    farthest: float | None = None


@dataclass(frozen=True)
class Registry:
    """Products with their models.

    Attributes:
        path: The file.
        products: Rules by the name of the product.
        nearest: Whether an image that no rule names belongs to the product that it resembles most.
        farthest: Distance beyond which an image resembles no product, see `adctl.scoring.products`; None for no limit.
    """

    path: Path
    products: Mapping[str, Product]
    nearest: bool = False
    farthest: float | None = None

    def model_of(self, product: str, runs: Path) -> Path:
        """Return the model file of a product.

        Args:
            product: Name of the product.
            runs: Folder of runs, in which names of runs are looked up.

        Raises:
            UsageError: There is no such model.
        """
        given = Path(self.products[product].model)
        beside = self.path.parent / given
        try:
            return find_model(runs, beside if beside.exists() else given)
        except UsageError as error:
            raise UsageError(f"{self.path}, product {product}: {error.message}", error.remedy) from error

    def product_of(self, path: PurePath) -> str | None:
        """Return the product whose pattern or folder names an image; None if no rule does.

        A pattern goes before a folder, and the innermost folder before those around it.

        Raises:
            UsageError: Patterns of several products fit.
        """
        fitting = [name for name, rules in self.products.items() if any(fnmatch(path.name, p) for p in rules.patterns)]
        if len(fitting) > 1:
            raise UsageError(
                f"{path} fits the patterns of {' and '.join(fitting)} in {self.path}.",
                "Narrow the patterns, so that each name belongs to one product.",
            )
        if fitting:
            return fitting[0]
        by_folder = _by_folder(self.products)
        return next((by_folder[name] for name in reversed(path.parent.parts) if name in by_folder), None)


def is_registry(model: Path | str | None) -> bool:
    """Return whether a model setting names a registry."""
    return model is not None and Path(model).suffix.lower() == SUFFIX


def read_registry(path: Path) -> Registry:
    """Read a registry and check that each product has one model, and each folder one product.

    Raises:
        UsageError: There is no such file.
        DataError: It is not TOML or not a registry; the message names the place.
    """
    try:
        content: dict[str, Any] = tomllib.loads(reading.read_bytes(path).decode())
    except FileNotFoundError as error:
        raise UsageError(f"There is no registry {path}.", "Give the TOML file that names the products.") from error
    except RecursionError as error:
        raise DataError(f"{path} cannot be read: it is nested too deeply.", _EXAMPLE) from error
    except (OSError, ValueError) as error:
        twice = (
            " A product has one table and one model." if "declare" in str(error) or "overwrite" in str(error) else ""
        )
        raise DataError(f"{path} cannot be read: {error}.{twice}", _EXAMPLE) from error
    try:
        found = documents.convert(content, _File)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} is not a registry: {error}.", _EXAMPLE) from error
    registry = Registry(path, found.products, found.nearest, found.farthest)
    _check(registry)
    return registry


def _check(registry: Registry) -> None:
    if not registry.products:
        raise DataError(f"{registry.path} names no product.", _EXAMPLE)
    seen: dict[str, str] = {}
    for name in registry.products:
        run_folder.named_folder(Path(), name or "-")
        if (other := seen.setdefault(name.casefold(), name)) != name:
            raise DataError(f"{registry.path} has two models for one product: {other} and {name}.", _EXAMPLE)
    _by_folder(registry.products, registry.path)


def _by_folder(products: Mapping[str, Product], registry: Path | None = None) -> dict[str, str]:
    """Return the product of each folder.

    Raises:
        DataError: A folder belongs to two products.
    """
    found: dict[str, str] = {}
    for name, rules in products.items():
        for folder in (name,) if rules.folders is None else rules.folders:
            if found.setdefault(folder, name) != name:
                raise DataError(
                    f"{registry} has two models for one product: the folder {folder} belongs to {found[folder]} "
                    f"and to {name}.",
                    "Give each folder to one product.",
                )
    return found
