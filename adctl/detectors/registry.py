"""Detectors by name: built-in detectors, and detectors of installed packages with entry points `adctl.detectors`.

Standard library only. The module of a detector is imported when its class is requested; entry points are read only for
names that are not built in.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, cast

from adctl.choices import DETECTORS
from adctl.errors import PluginError, unknown_name

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from adctl.detectors.base import Detector

GROUP = "adctl.detectors"
"""Group of the entry points: the name of a detector = `module:Class`."""


@dataclass(frozen=True)
class DetectorPackage:
    """An installed package that provides a detector.

    Attributes:
        name: Name of the distribution, as pip knows it.
        version: Its version.
    """

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def detector_class(arch: str) -> type[Detector]:
    """Return the class behind a name.

    Raises:
        UsageError: There is no such detector; the message lists the known ones, with their packages.
        PluginError: The package that provides it cannot be loaded, or two packages provide the same name.
    """
    if arch in DETECTORS:
        return cast("type[Detector]", pkgutil.resolve_name(DETECTORS[arch]))
    found = _plugins()
    if arch not in found:
        raise unknown_name(
            "arch", arch, (*DETECTORS, *found), {name: str(_package(one)) for name, one in found.items()}
        )
    return _load(found[arch])


def package_of(arch: str) -> DetectorPackage | None:
    """Return the installed package that provides a detector; None for a built-in or unknown one.

    Raises:
        PluginError: Two packages provide the same name.
    """
    if arch in DETECTORS or arch not in _plugins():
        return None
    return _package(_plugins()[arch])


@cache
def _plugins() -> dict[str, EntryPoint]:
    """Return the detectors of other packages by name."""
    from importlib.metadata import entry_points

    found: dict[str, EntryPoint] = {}
    for one in entry_points(group=GROUP):
        if one.name in DETECTORS or one.name in found:
            other = f"'{found[one.name].dist.name}'" if one.name in found else "adctl itself"  # type: ignore[union-attr]
            raise PluginError(
                f"The package '{_package(one).name}' provides a detector '{one.name}', which {other} provides too.",
                "Uninstall the package, or one of the two.",
            )
        found[one.name] = one
    return found


def _package(one: EntryPoint) -> DetectorPackage:
    assert one.dist is not None  # set for entry points of installed packages
    return DetectorPackage(one.dist.name, one.dist.version)


def _load(one: EntryPoint) -> type[Detector]:
    from adctl.detectors.base import Detector, DetectorConfig

    package = _package(one)
    try:
        cls = one.load()
    except Exception as error:  # the package may raise any error
        raise PluginError(
            f"The detector '{one.name}' of the package {package} cannot be imported: {type(error).__name__}: {error}",
            f"Repair or update that package: pip install --upgrade --force-reinstall {package.name}",
        ) from error
    config = getattr(cls, "Config", object)
    if not (isinstance(cls, type) and issubclass(cls, Detector) and issubclass(config, DetectorConfig)):
        raise PluginError(
            f"The entry point '{one.name}' of the package {package} is not a detector: {one.value}.",
            "It must name a subclass of adctl.detectors.base.Detector whose Config is a DetectorConfig.",
        )
    return cls
