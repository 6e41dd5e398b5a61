"""Command `adctl serve keys`: the list of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows

if TYPE_CHECKING:
    from adctl.config import RunsSettings


def run(call: Call[RunsSettings]) -> None:
    """List the keys."""
    from adctl.serve.keys import list_keys

    keys = list_keys(call.settings.runs)
    lines = [(key.name, key.role, key.created, f"revoked {key.revoked}" if key.revoked else "valid") for key in keys]
    call.finish(keys, lambda: rows(lines, "name", "role", "created", "state") if lines else "There are no keys.")
