"""Text of `adctl report A B`: metrics side by side, and which differences are significant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import rows

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.reporting.compare import CompareResult


def comparison_text(result: CompareResult) -> RenderableType:
    """Return metrics, tests and files of a comparison."""
    from rich.console import Group
    from rich.padding import Padding

    from adctl.reporting.comparison_page import metric_rows, summarise

    found = result.comparison
    parts: list[RenderableType] = []
    metrics = metric_rows(found)
    if metrics:
        lines = [(row["name"], *(f"{cell['value']} ({cell['range']})" for cell in row["cells"])) for row in metrics]
        parts.append(rows(lines, "metric", *(one.name for one in found.sets)))
    tests = _tests(result)
    if tests:
        parts.append(Padding(rows(tests, "image AUROC", "difference", "p", "p, Holm"), (1, 0, 0, 0)))
    parts.append(
        Padding(
            rows(
                [
                    ("result", summarise(found)),
                    *(
                        ("speed", f"{one.name} {one.images_per_second:.1f} images/s")
                        for one in found.sets
                        if one.images_per_second
                    ),
                    *(("note", note) for note in found.notes),
                    *(("comparison", str(file)) for file in result.files),
                    *([("figures", ", ".join(map(str, result.figures)))] if result.figures else []),
                    *([("animation", str(result.animation))] if result.animation else []),
                ]
            ),
            (1, 0, 0, 0),
        )
    )
    return Group(*parts)


def _tests(result: CompareResult) -> list[tuple[str, ...]]:
    from adctl.metrics.statistics import p_text

    lines = []
    for pair in result.comparison.pairs:
        test = pair.metrics.get("image_auroc")
        if test is not None:
            values = (
                "-" if value is None else p_text(value) for value in (test.p_value, pair.corrected.get("image_auroc"))
            )
            lines.append((f"{pair.second} minus {pair.first}", f"{test.difference:+.4f}", *values))
    return lines
