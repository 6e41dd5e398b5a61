"""Command `adctl serve keys add`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows

if TYPE_CHECKING:
    from adctl.config import ServeKeysAddSettings


def run(call: Call[ServeKeysAddSettings]) -> None:
    """Make a key and show it once."""
    from adctl.serve.keys import add_key

    settings = call.settings
    new = add_key(settings.runs, settings.key_name, settings.role)
    note = "keep it now: only its digest is stored"
    call.finish(new, lambda: rows([("name", new.name), ("role", new.role), ("key", new.key), ("note", note)]))
