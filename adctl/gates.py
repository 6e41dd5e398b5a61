"""Gates for continuous integration: conditions on figures that fail a command, and what became of them as JUnit XML.

A gate reads `NAME>NUMBER` (or `<`, `>=`, `<=`) and names when to fail: `p95_ms>50`, `image_auroc<0.95`. Nothing is
evaluated but this one comparison. A figure that could not be measured fails its gates: what is not known must not
pass. Standard library only; knows nothing of what the figures mean.
"""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET  # written, never read

from adctl import files
from adctl.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

EXIT_CODE = 3
"""Of a command whose gate failed."""

_EXPRESSION = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*)\s*(>=|<=|>|<)\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le
}  # fmt: skip
# XML 1.0 has no place for these, escaped or not.
_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Gate:
    """When to fail.

    Attributes:
        figure: Its name.
        comparison: `>`, `>=`, `<` or `<=`.
        limit: The number it is compared with.
    """

    figure: str
    comparison: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Read `NAME>NUMBER`.

        Raises:
            UsageError: It is something else.
        """
        match = _EXPRESSION.fullmatch(text)
        try:
            if match is not None:
                return cls(match[1], match[2], float(match[3]))
        except ValueError:  # 1.2.3
            pass
        raise UsageError(
            f"The condition '{text}' cannot be understood.",
            "Write NAME>NUMBER or NAME<NUMBER in quotes, for example --fail-if 'p95_ms>50'.",
        )

    def __str__(self) -> str:
        return f"{self.figure}{self.comparison}{self.limit:g}"


@dataclass(frozen=True)
class GateResult:
    """What became of a gate.

    Attributes:
        gate: As it is shown: the condition, or the name of another check.
        subject: What it was held against: a model, a data set.
        passed: Whether all is well.
        message: The figure and the limit, in one sentence.
    """

    gate: str
    subject: str
    passed: bool
    message: str


def check(
    gates: Iterable[Gate],
    figures: Mapping[str, float | None],
    subject: str,
    reasons: Mapping[str, str] | None = None,
) -> list[GateResult]:
    """Hold figures against gates.

    Args:
        gates: When to fail.
        figures: By name; None where one could not be measured.
        subject: What they are of.
        reasons: Why a figure is None, by name, where that is known.

    Raises:
        UsageError: There is no figure of that name.
    """
    return [_check_one(gate, figures, subject, reasons or {}) for gate in gates]


def _check_one(gate: Gate, figures: Mapping[str, float | None], subject: str, reasons: Mapping[str, str]) -> GateResult:
    if gate.figure not in figures:
        raise unknown_name("figure in --fail-if", gate.figure, figures)
    value = figures[gate.figure]
    if value is None or math.isnan(value):
        reason = f": {reasons[gate.figure]}" if reasons.get(gate.figure) else ""
        return GateResult(str(gate), subject, passed=False, message=f"{gate.figure} could not be measured{reason}.")
    failed = _COMPARE[gate.comparison](value, gate.limit)
    message = f"{gate.figure} is {value:.6g}; it fails when {gate.comparison} {gate.limit:g}."
    return GateResult(str(gate), subject, passed=not failed, message=message)


def exit_code(results: Iterable[GateResult]) -> int:
    """0 when every gate passed."""
    return 0 if all(result.passed for result in results) else EXIT_CODE


def write_junit(path: Path, suite: str, results: Sequence[GateResult]) -> None:
    """Write results as JUnit XML, which the pages of every CI system show.

    Args:
        path: The file.
        suite: Its name: the command.
        results: One test case each.

    Raises:
        OutputError: It cannot be written.
    """
    failures = sum(not result.passed for result in results)
    counted = {"tests": str(len(results)), "failures": str(failures), "errors": "0", "skipped": "0"}
    root = ET.Element("testsuites", counted)
    parent = ET.SubElement(root, "testsuite", {"name": suite, **counted})
    for result in results:
        names = {"classname": _plain(f"{suite}.{result.subject}"), "name": _plain(result.gate), "time": "0"}
        case = ET.SubElement(parent, "testcase", names)
        if result.passed:
            ET.SubElement(case, "system-out").text = _plain(result.message)
        else:
            ET.SubElement(case, "failure", {"message": _plain(result.message)})
    ET.indent(root)
    files.write_bytes(path, ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")


def _plain(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
