"""Command `adctl serve keys revoke`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows

if TYPE_CHECKING:
    from adctl.config import ServeKeysRevokeSettings


def run(call: Call[ServeKeysRevokeSettings]) -> None:
    """Revoke a key; running servers refuse it within seconds."""
    from adctl.serve.keys import revoke_key

    key = revoke_key(call.settings.runs, call.settings.key_name)
    call.finish(key, lambda: rows([("revoked", key.name), ("role", key.role)]))
