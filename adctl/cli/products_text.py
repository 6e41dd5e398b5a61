"""Text of the result of `adctl score` with a registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import rows

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.scoring.products import ProductsResult

_COLUMNS = ("good", "warn", "reject", "uncalibrated", "error")


def products_text(result: ProductsResult) -> RenderableType:
    """Return the table of verdicts by product, and the commands that come next."""
    from rich.console import Group

    shown = [name for name in _COLUMNS if result.counts[name]]
    lines = [(name, *(str(one.counts[column]) for column in shown)) for name, one in result.products.items()]
    if result.unassigned:
        lines.append(("no product", *(str(len(result.unassigned)) if name == "error" else "0" for name in shown)))
    first = next(iter(result.products))
    after = [("results", str(result.folder)), ("next", f"adctl report {result.folder / first}")]
    return Group(rows(lines, "product", *shown), "", rows(after))
