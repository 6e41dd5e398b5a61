"""Gates for continuous integration: conditions on metrics that make a command fail.

A gate is written `NAME>NUMBER` (or `<`, `>=`, `<=`) and states when to fail: `p95_ms>50`, `image_auroc<0.95`. No
other expression is evaluated. A metric that could not be measured fails its gates. Standard library only.
"""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adctl.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

EXIT_CODE = 3
"""Exit code of a command when a gate failed."""

_EXPRESSION = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*)\s*(>=|<=|>|<)\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le
}  # fmt: skip


@dataclass(frozen=True)
class Gate:
    """A condition on one metric; the gate fails when the condition is true.

    Attributes:
        metric: Name of the metric.
        comparison: `>`, `>=`, `<` or `<=`.
        limit: The number that the metric is compared with.
    """

    metric: str
    comparison: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Parse `NAME>NUMBER`.

        Raises:
            UsageError: The text has another form.
        """
        match = _EXPRESSION.fullmatch(text)
        try:
            if match is not None:
                return cls(match[1], match[2], float(match[3]))
        except ValueError:  # a limit such as 1.2.3
            pass
        raise UsageError(
            f"The condition '{text}' cannot be understood.",
            "Write NAME>NUMBER or NAME<NUMBER in quotes, for example --fail-if 'p95_ms>50'.",
        )

    def __str__(self) -> str:
        return f"{self.metric}{self.comparison}{self.limit:g}"


@dataclass(frozen=True)
class GateResult:
    """Result of a gate or of another pass-or-fail check.

    Attributes:
        gate: The condition as typed, or the name of the other check.
        subject: The model or dataset that was checked.
        passed: True if the gate passed.
        message: One sentence with the measured value and the limit.
    """

    gate: str
    subject: str
    passed: bool
    message: str


def check(
    gates: Iterable[Gate],
    metrics: Mapping[str, float | None],
    subject: str,
    reasons: Mapping[str, str] | None = None,
) -> list[GateResult]:
    """Check measured metrics against gates.

    Args:
        gates: The conditions.
        metrics: Values of the metrics by name; None if a metric could not be measured.
        subject: The model or dataset that the metrics belong to.
        reasons: Reasons why metrics are None, by name, as far as known.

    Raises:
        UsageError: A gate names an unknown metric.
    """
    return [_check_one(gate, metrics, subject, reasons or {}) for gate in gates]


def _check_one(gate: Gate, metrics: Mapping[str, float | None], subject: str, reasons: Mapping[str, str]) -> GateResult:
    if gate.metric not in metrics:
        raise unknown_name("metric in --fail-if", gate.metric, metrics)
    value = metrics[gate.metric]
    if value is None or math.isnan(value):
        reason = f": {reasons[gate.metric]}" if reasons.get(gate.metric) else ""
        return GateResult(str(gate), subject, passed=False, message=f"{gate.metric} could not be measured{reason}.")
    failed = _COMPARE[gate.comparison](value, gate.limit)
    message = f"{gate.metric} is {value:.6g}; the gate fails when it is {gate.comparison} {gate.limit:g}."
    return GateResult(str(gate), subject, passed=not failed, message=message)


def exit_code(results: Iterable[GateResult]) -> int:
    """Return 0 if every gate passed, else `EXIT_CODE`."""
    return 0 if all(result.passed for result in results) else EXIT_CODE
