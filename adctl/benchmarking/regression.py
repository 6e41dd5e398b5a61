"""Regression check against an earlier benchmark, allowing for noise and machine speed.

A result counts as slower only if it is slower in seconds and also relative to a matrix product timed in the same
rounds. So a machine that is slower as a whole is not a regression, and neither is a faster matrix product. Both
differences must exceed the measured noise of the two runs, plus 5 %, plus the additional share of the cores that
other processes used in this run.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adctl import documents, reading
from adctl.benchmarking.results import SCHEMA, BenchResult, ModelBenchmark
from adctl.errors import DataError, UsageError
from adctl.gates import GateResult

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

_TOLERANCE = 0.05
"""Relative difference between two runs that is always allowed; memory placement changes from run to run."""


def read_baseline(path: Path) -> dict[str, Any]:
    """Read the results of an earlier run.

    Raises:
        UsageError: The file does not exist.
        DataError: The file does not hold results of `adctl bench`.
    """
    try:
        document: dict[str, Any] = documents.parse_json(reading.read_bytes(path))
        # The file was written by --out, or it is the output of --json.
        document = document.get("result", document)
        if document.get("schema", SCHEMA) != SCHEMA:
            raise DataError(f"{path} has the format '{document['schema']}', not '{SCHEMA}'.", "Run bench --out again.")
        _check(documents.convert(document, _Baseline, others="ignore"))
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {path} to compare with.", "Write one with 'adctl bench --out'.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} holds no results of 'adctl bench': {error}.", "Write it with 'adctl bench --out'."
        ) from error
    return document


@dataclass(frozen=True)
class _Latency:
    p50: float


@dataclass(frozen=True)
class _Model:
    path: str
    runtime: str
    latency_ms: _Latency
    throughput: dict[str, float]
    noise: dict[str, float]
    from_disk: float | None = None


@dataclass(frozen=True)
class _Machine:
    gemm_seconds: float
    others: float


@dataclass(frozen=True)
class _Baseline:
    """Values of earlier results that are compared."""

    device: str
    machine: _Machine
    models: tuple[_Model, ...]


def _check(baseline: _Baseline) -> None:
    """Check that the values can be compared.

    Raises:
        ValueError: A time or a rate is not positive, or one that has noise is missing.
    """
    for model in baseline.models:
        rates = [*model.throughput.values(), *([] if model.from_disk is None else [model.from_disk])]
        if min(model.latency_ms.p50, baseline.machine.gemm_seconds, *rates) <= 0:
            raise ValueError("a time or a rate is not positive")
        known = {"p50_ms", "from_disk_images_per_second", *(f"_{size}" for size in model.throughput)}
        if missing := [name for name in model.noise if not {name, f"_{name.rpartition('_')[2]}"} & known]:
            raise ValueError(f"the value of {missing[0]} is missing")


def compare(current: BenchResult, baseline: dict[str, Any]) -> list[GateResult]:
    """Compare each value that both runs have.

    Args:
        current: Results of this run.
        baseline: Results of an earlier run, from `read_baseline`.

    Returns:
        One result for each compared value of each model.

    Raises:
        UsageError: The runs have no model in common, or used different devices.
    """
    if baseline["device"] != current.device:
        raise UsageError(
            f"The earlier results are from the device {baseline['device']}, these are from {current.device}.",
            "Compare runs on the same device.",
        )
    pairs = _pair_models(current, baseline["models"])
    machine_ratio = current.machine.gemm_seconds / baseline["machine"]["gemm_seconds"]
    extra_load = max(0.0, current.machine.others - baseline["machine"]["others"])
    return [
        _compare_value(model, name, old, machine_ratio, extra_load)
        for model, old in pairs
        for name in model.noise
        if name in old["noise"]
    ]


def _pair_models(current: BenchResult, baseline: list[dict[str, Any]]) -> list[tuple[ModelBenchmark, dict[str, Any]]]:
    """Pair each model with its earlier results by folder, name and runtime, or without names if each run has one."""
    if len(current.models) == len(baseline) == 1:
        return [(current.models[0], baseline[0])]
    by_name = {(*_last_two(old["path"]), old["runtime"]): old for old in baseline}
    candidates = [(model, by_name.get((*_last_two(str(model.path)), model.runtime))) for model in current.models]
    for model, old in candidates:
        if old is None:
            log.warning("%s with %s is not in the earlier results.", model.name, model.runtime)
    pairs = [(model, old) for model, old in candidates if old is not None]
    if not pairs:
        raise UsageError("None of these models is in the earlier results.", "Compare runs of the same models.")
    return pairs


def _last_two(path: str) -> tuple[str, ...]:
    return tuple(path.replace("\\", "/").split("/")[-2:])


def _compare_value(
    model: ModelBenchmark, name: str, old: dict[str, Any], machine_ratio: float, extra_load: float
) -> GateResult:
    current, earlier = _seconds(name, model.named()[name]), _seconds(name, _earlier_value(name, old))
    slower = current / earlier / max(1.0, machine_ratio) - 1
    limit = _TOLERANCE + extra_load + math.hypot(model.noise[name], old["noise"][name])
    return GateResult(
        gate=f"{name} against baseline",
        subject=f"{model.name} {model.runtime}",
        passed=slower <= limit,
        message=f"{100 * abs(slower):.0f} % {'slower' if slower > 0 else 'faster'} than the baseline, after correction "
        f"for the speed of the machine; a difference of up to {100 * limit:.0f} % may be chance.",
    )


def _earlier_value(name: str, old: dict[str, Any]) -> float | None:
    if name == "p50_ms":
        return float(old["latency_ms"]["p50"])
    if name == "from_disk_images_per_second":
        return None if old["from_disk"] is None else float(old["from_disk"])
    return float(old["throughput"][name.rpartition("_")[2]])


def _seconds(name: str, value: float | None) -> float:
    """Convert a rate to a time, and leave a time unchanged; NaN if there is no value. Only ratios are used."""
    value = math.nan if value is None else value
    return value if name.endswith("_ms") else 1 / value
