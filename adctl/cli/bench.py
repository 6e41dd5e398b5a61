"""Command `adctl bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows
from adctl.gates import exit_code

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.benchmarking.bench import Benchmark
    from adctl.config import BenchSettings


def run(call: Call[BenchSettings]) -> int:
    """Measure the models and check the gates; return 3 if one failed."""
    from adctl.benchmarking.bench import bench

    result = bench(call.loaded, call.reporter)
    call.finish({**result.results.to_dict(), "gates": result.gates}, lambda: _text(result))
    call.annotate("adctl bench", result.gates)
    return exit_code(result.gates)


def _text(result: Benchmark) -> RenderableType:
    from rich.console import Group

    from adctl.benchmarking.tables import machine_text, table_rows

    (_, *headers), *lines = table_rows(result.results)
    shown = [rows([*lines, ("machine", machine_text(result.results))], "figure", *headers)]
    if result.gates:
        gates = [("passed" if one.passed else "FAILED", one.gate, one.subject, one.message) for one in result.gates]
        shown += ["", rows(gates, "gate", "", "model", "")]
    return Group(*shown)
