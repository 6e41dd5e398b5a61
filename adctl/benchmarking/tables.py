"""Benchmark results as a table, as Markdown for CI pages, and as a chart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl import files
from adctl.benchmarking.results import mebibytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from adctl.benchmarking.results import BenchResult, ModelBenchmark
    from adctl.gates import GateResult


def table_rows(result: BenchResult) -> list[tuple[str, ...]]:
    """Return a line of headers, then one line for each value, with one column for each model."""
    columns = [_column(model) for model in result.models]
    names = list(dict.fromkeys(name for column in columns for name in column))
    headers = ("", *(f"{model.name} ({model.runtime}, {result.device})" for model in result.models))
    return [headers, *((name, *(column.get(name, "-") for column in columns)) for name in names)]


def machine_text(result: BenchResult) -> str:
    """Describe the limits of the machine in one line."""
    machine = result.machine
    return (
        f"{machine.flops_per_second / 1e9:.0f} GFLOP/s in a matrix product, "
        f"{machine.bytes_per_second / 1e9:.1f} GB/s in a memory copy, measured in the same {result.repeats} rounds"
    )


def _column(model: ModelBenchmark) -> dict[str, str]:
    latency = model.latency_ms
    texts = {
        "latency ms p50 / p95 / p99": f"{latency.p50:.1f} / {latency.p95:.1f} / {latency.p99:.1f}",
        **{f"images/s, batch {size}": f"{rate:.1f}" for size, rate in model.throughput.items()},
        "images/s from disk": _number(model.from_disk, ".1f"),
        "  share of speed in memory": _share(model.from_disk_share),
        "share of arithmetic limit": _share(model.arithmetic_share),
        "share of memory limit": _share(model.memory_share),
        "GFLOP per image": _number(None if model.flops is None else model.flops / 1e9, ".2f"),
        "cold start s": _number(model.cold_start_seconds, ".2f"),
        "load s": f"{model.load_seconds:.2f}",
        "peak memory MiB": _number(mebibytes(model.host_memory), ".0f"),
        "GPU memory MiB": _number(mebibytes(model.device_memory), ".0f"),
        "model file MiB": _number(mebibytes(model.size_bytes), ".1f"),
        "noise of p50": f"+-{100 * model.noise['p50_ms']:.0f} %",
    }
    return {name: text for name, text in texts.items() if text}


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.3g} %"


def write_markdown(path: Path, result: BenchResult, gates: Sequence[GateResult]) -> None:
    """Write the results and the gates as Markdown.

    Raises:
        OutputError: The file cannot be written.
    """
    headers, *lines = table_rows(result)
    parts = ["## adctl bench", "", machine_text(result) + ".", ""]
    parts += [_row(headers), _row(["---", *["---:"] * (len(headers) - 1)]), *map(_row, lines)]
    if gates:
        parts += ["", _row(["gate", "model", "", ""]), _row(["---"] * 4)]
        parts += [
            _row([gate.gate, gate.subject, "passed" if gate.passed else "**failed**", gate.message]) for gate in gates
        ]
    files.write_text(path, "\n".join(parts) + "\n")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.strip().replace("|", "\\|") for cell in cells) + " |"


def write_plot(path: Path, result: BenchResult) -> None:
    """Draw throughput over batch size and the percentiles of latency as a PNG file.

    Raises:
        OutputError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_throughput(left, result)
    _draw_latency(right, result)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(3, len(result.models)), frameon=False, fontsize=8
    )
    figure.suptitle(f"adctl bench on {result.device}: {machine_text(result)}", fontsize=9)
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": "adctl"})


def _draw_throughput(axes: Axes, result: BenchResult) -> None:
    for number, model in enumerate(result.models):
        colour = f"C{number}"
        sizes = sorted(model.throughput)
        rates = [model.throughput[size] for size in sizes]
        axes.plot(sizes, rates, marker="o", color=colour, label=f"{model.name} ({model.runtime})")
        if model.flops:
            limit = result.machine.flops_per_second / model.flops
            axes.axhline(limit, color=colour, linestyle=":", label=f"arithmetic limit, {limit:.0f} images/s")
        if model.from_disk is not None:
            axes.plot(
                sizes[-1:], [model.from_disk], marker="x", markersize=10, color=colour, linestyle="", label="from disk"
            )
    axes.set_xscale("log", base=2)
    ticks = sorted({size for model in result.models for size in model.throughput})
    axes.set_xticks(ticks, [str(size) for size in ticks])
    axes.set(xlabel="batch size", ylabel="images/s", title="Throughput", ylim=(0, None))


def _draw_latency(axes: Axes, result: BenchResult) -> None:
    width = 0.8 / len(result.models)
    for number, model in enumerate(result.models):
        latency = model.latency_ms
        positions = [group + number * width for group in range(3)]
        bars = axes.bar(positions, [latency.p50, latency.p95, latency.p99], width, color=f"C{number}")
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    middle = (len(result.models) - 1) * width / 2
    axes.set_xticks([group + middle for group in range(3)], ["p50", "p95", "p99"])
    axes.margins(y=0.1)
    axes.set(ylabel="ms", title="Latency of single images", ylim=(0, None))
