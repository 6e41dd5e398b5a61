"""Command `adctl runs view`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from adctl.cli.output import rows

if TYPE_CHECKING:
    from adctl.cli.output import Call
    from adctl.config import RunsViewSettings


def run(call: Call[RunsViewSettings]) -> None:
    """Serve the page of runs until the process is interrupted."""
    from adctl.serve.page.runs_view import serve_runs

    def announce(address: str) -> None:
        call.finish({"page": address}, lambda: rows([("page", address), ("end", "Ctrl-C")]))
        sys.stdout.flush()  # a file or pipe has the address while the page is served

    serve_runs(call.settings, announce)
