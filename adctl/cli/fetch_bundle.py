"""Command `adctl fetch bundle`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.config import FetchBundleSettings
    from adctl.fetching.bundles import BundleResult


def run(call: Call[FetchBundleSettings]) -> None:
    """Write the bundle."""
    from adctl.fetching.bundles import make_bundle

    result = make_bundle(call.settings, reporter=call.reporter)
    call.finish(result, lambda: _text(result))


def _text(result: BundleResult) -> RenderableType:
    from adctl.fetching.download import format_bytes

    held = [f"{name} ({', '.join(categories)})" for name, categories in result.datasets.items()]
    return rows(
        [
            ("bundle", f"{result.path}: {result.files} files, {format_bytes(result.bytes)}"),
            ("datasets", "; ".join(held) or "none"),
            ("weights", ", ".join(result.weights) or "none"),
            ("digest", f"{result.digest} (of SHA256SUMS: send it by another way than the bundle)"),
            *(("other computer" if index == 0 else "", line) for index, line in enumerate(result.install)),
        ]
    )
