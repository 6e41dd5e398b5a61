"""Figures against those of an earlier run: slower beyond what chance and the machine's own mood explain?

A figure has become slower when it has by the clock, and also in multiples of the time the machine took for a matrix
product in the same rounds: a machine that is slower as a whole is no regression, nor is one whose products have
become faster. By both, it must be slower by more than the noise both runs measured of themselves, one twentieth, and
as much as other processes took more of the cores this time.
"""

from __future__ import annotations

import json
import logging
import math
from typing import TYPE_CHECKING, Any

from adctl.benchmarking.results import SCHEMA, BenchResult, ModelBenchmark
from adctl.errors import DataError, UsageError
from adctl.gates import GateResult

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

_ALWAYS = 0.05
"""What two runs may differ by whatever their noise: memory lies elsewhere each time."""


def read_baseline(path: Path) -> dict[str, Any]:
    """The figures of an earlier run.

    Raises:
        UsageError: There is no such file.
        DataError: It holds something else.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        # Either what --out wrote, or what --json printed.
        document = document.get("result", document)
        if document.get("schema", SCHEMA) != SCHEMA:
            raise DataError(f"{path} has the format '{document['schema']}', not '{SCHEMA}'.", "Run bench --out again.")
        for model in document["models"]:
            _ = model["path"], model["runtime"], model["latency_ms"]["p50"], model["throughput"], model["noise"]
        _ = document["device"], document["machine"]["gemm_seconds"], document["machine"]["others"]
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {path} to compare with.", "Write one with 'adctl bench --out'.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} holds no figures of 'adctl bench': {error}.", "Write it with bench --out.") from error
    return document


def compare(now: BenchResult, before: dict[str, Any]) -> list[GateResult]:
    """One result for each figure that both runs have.

    Args:
        now: This run.
        before: From `read_baseline`.

    Raises:
        UsageError: The runs have no model in common, or ran on different devices.
    """
    if before["device"] != now.device:
        raise UsageError(
            f"The earlier figures are of the device {before['device']}, these of {now.device}.",
            "Compare runs on the same device.",
        )
    pairs = _pairs(now, before["models"])
    machine = now.machine.gemm_seconds / before["machine"]["gemm_seconds"]
    busier = max(0.0, now.machine.others - before["machine"]["others"])
    return [
        _compare(model, name, old, machine, busier)
        for model, old in pairs
        for name in model.noise
        if name in old["noise"]
    ]


def _pairs(now: BenchResult, before: list[dict[str, Any]]) -> list[tuple[ModelBenchmark, dict[str, Any]]]:
    """Models with their earlier selves: by folder, name and runtime, or the only one with the only one."""
    if len(now.models) == len(before) == 1:
        return [(now.models[0], before[0])]
    known = {(*_last_two(old["path"]), old["runtime"]): old for old in before}
    found = [(model, known.get((*_last_two(str(model.path)), model.runtime))) for model in now.models]
    for model, old in found:
        if old is None:
            log.warning("%s with %s is not among the earlier figures.", model.name, model.runtime)
    pairs = [(model, old) for model, old in found if old is not None]
    if not pairs:
        raise UsageError("None of these models is among the earlier figures.", "Compare runs of the same models.")
    return pairs


def _last_two(path: str) -> tuple[str, ...]:
    return tuple(path.replace("\\", "/").split("/")[-2:])


def _compare(model: ModelBenchmark, name: str, old: dict[str, Any], machine: float, busier: float) -> GateResult:
    current, earlier = _seconds(name, _value(model.named()[name])), _seconds(name, _value(_earlier(name, old)))
    slower = current / earlier / max(1.0, machine) - 1
    limit = _ALWAYS + busier + math.hypot(model.noise[name], old["noise"][name])
    return GateResult(
        gate=f"{name} against before",
        subject=f"{model.name} {model.runtime}",
        passed=slower <= limit,
        message=f"{100 * abs(slower):.0f} % {'slower' if slower > 0 else 'faster'} than before, the machine's own "
        f"speed taken out; up to {100 * limit:.0f} % may be chance.",
    )


def _earlier(name: str, old: dict[str, Any]) -> float | None:
    if name == "p50_ms":
        return float(old["latency_ms"]["p50"])
    if name == "from_disk_images_per_second":
        return None if old["from_disk"] is None else float(old["from_disk"])
    return float(old["throughput"][name.rpartition("_")[2]])


def _value(figure: float | None) -> float:
    return math.nan if figure is None else figure


def _seconds(name: str, value: float) -> float:
    """A rate as a time; only ratios of these are looked at."""
    return value if name.endswith("_ms") else 1 / value
