"""Search spaces: the ranges of a detector's settings, narrowed or widened by the user."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from adctl.detectors.base import Search
from adctl.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna import Trial

    from adctl.detectors.base import Detector, DetectorConfig

_RANGE = re.compile(r"\s*([-+.\deE]+)\s*\.\.\s*([-+.\deE]+)\s*(log)?\s*")
_GRID_POINTS = 4

TRAINING = {"learning_rate": Search(1e-4, 1e-2, log=True)}
"""Settings of training that are searched for detectors trained by gradient steps."""


@dataclass(frozen=True)
class SearchSpace:
    """Search space of one detector.

    Attributes:
        ranges: Range of each setting, by its name.
        config: Names that are options of the detector; the others are settings of training.
    """

    ranges: Mapping[str, Search]
    config: frozenset[str]

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Return the values of a trial; a conditional setting has one only if its condition holds."""
        values: dict[str, Any] = {}
        for name, search in self.ranges.items():
            if search.when is None or values.get(search.when[0], search.when[1]) == search.when[1]:
                values[name] = _suggest(trial, name, search)
        return values

    def grid(self) -> dict[str, list[Any]]:
        """Return the values of a grid: all choices, and four points of each range."""
        return {name: _points(search) for name, search in self.ranges.items()}

    def holds(self, name: str, value: Any) -> bool:
        """Return whether a value lies in the range of a setting."""
        search = self.ranges[name]
        if search.choices:
            return value in search.choices
        return search.low is not None and search.high is not None and search.low <= value <= search.high

    def settings_of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values as settings of `adctl train`, with the options of the detector under `options`."""
        options = {name: value for name, value in values.items() if name in self.config}
        return {**{name: value for name, value in values.items() if name not in self.config}, "options": options}


def search_space(cls: type[Detector], narrowed: Mapping[str, Any], fixed: Mapping[str, Any]) -> SearchSpace:
    """Return the search space of a detector.

    Args:
        cls: Class of the detector.
        narrowed: Ranges of the user, by name: a text such as `0..2`, `1e-4..1e-2 log` or `full,shared`, or a list. A
            setting without a range of its own is searched too if it is named here.
        fixed: Settings that the user fixed; they are not searched.

    Raises:
        UsageError: A name is unknown, or a range cannot be understood, is empty or contradicts the setting's bounds.
    """
    config = cls.Config
    training = TRAINING if cls.needs_validation else {}
    known = {*config.model_fields, *TRAINING, "image_size"}
    for name in narrowed:
        if name not in known:
            raise unknown_name("setting to search", name, known)
    ranges: dict[str, Search] = {**config.search_ranges, **training}
    for name, given in narrowed.items():
        ranges[name] = _parse(name, given, ranges.get(name))
        _check_bounds(config, name, ranges[name])
    ranges = {name: search for name, search in ranges.items() if name in narrowed or name not in fixed}
    if not ranges:
        raise UsageError("There is nothing to search.", "Name settings and ranges with --space, such as blur=0..2.")
    conditions_first = sorted(ranges, key=lambda name: ranges[name].when is not None)
    return SearchSpace(
        {name: ranges[name] for name in conditions_first}, frozenset(config.model_fields) - {"image_size"}
    )


def _parse(name: str, given: Any, declared: Search | None) -> Search:
    """Read a range of the user; whether it is one of whole numbers follows from the range that it replaces."""
    if isinstance(given, str) and (match := _RANGE.fullmatch(given)):
        low, high = float(match[1]), float(match[2])
        whole = declared.whole if declared else all(re.fullmatch(r"[-+]?\d+", match[index]) for index in (1, 2))
        log = bool(match[3]) or bool(declared and declared.log and low > 0)
        search = Search(low, high, log=log, whole=whole, when=declared.when if declared else None)
        if not low < high or (log and low <= 0):
            raise UsageError(f"The range {name}={given} is empty.", "Write the lower end first, such as 0.1..2.")
        return search
    if isinstance(given, str):
        given = [_value(part) for part in given.split(",")]
    choices = given if isinstance(given, list | tuple) else [given]
    if not choices:
        raise UsageError(f"The range of {name} is empty.", "Give a range such as 0..2, or values with commas.")
    base = declared or Search()
    return replace(base, low=None, high=None, log=False, whole=False, choices=tuple(choices))


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.strip().lower(), text.strip())


def _check_bounds(config: type[DetectorConfig], name: str, search: Search) -> None:
    """Check the ends or choices of a range against the detector's own setting.

    Raises:
        UsageError: The detector refuses one of them.
    """
    if name not in config.model_fields:
        return
    from pydantic import ValidationError

    for value in _points(search):
        try:
            config.__pydantic_validator__.validate_assignment(config.model_construct(), name, value)
        except ValidationError as error:
            if any(name in entry["loc"] for entry in error.errors()):
                reason = error.errors()[0]["msg"]
                raise UsageError(
                    f"The setting {name} cannot be {value!r}: {reason}.", "Narrow its range with --space."
                ) from error


def _suggest(trial: Trial, name: str, search: Search) -> Any:
    if search.choices:
        return trial.suggest_categorical(name, list(search.choices))
    assert search.low is not None
    assert search.high is not None
    if search.whole:
        return trial.suggest_int(name, int(search.low), int(search.high), log=search.log, step=search.step or 1)
    return trial.suggest_float(name, search.low, search.high, log=search.log)


def _points(search: Search) -> list[Any]:
    import numpy as np

    if search.choices:
        return list(search.choices)
    assert search.low is not None
    assert search.high is not None
    space = np.geomspace if search.log else np.linspace
    points = space(search.low, search.high, _GRID_POINTS)
    if not search.whole:
        return [float(point) for point in points]
    step = search.step or 1
    return sorted({int(search.low + step * round((point - search.low) / step)) for point in points})
