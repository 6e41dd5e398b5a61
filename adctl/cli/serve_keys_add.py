"""Command `adctl serve keys add`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows
from adctl.errors import UsageError

if TYPE_CHECKING:
    from adctl.config import ServeKeysAddSettings

log = logging.getLogger(__name__)


def run(call: Call[ServeKeysAddSettings]) -> None:
    """Make a key and show it once; a key that nobody could see is revoked."""
    from adctl.cli.streams import stdout_failure
    from adctl.serve.keys import add_key, revoke_key

    settings = call.settings
    if call.asked("quiet") and not call.as_json:
        raise UsageError("--quiet would hide the key, which is shown only once.", "Leave it out, or give --json.")
    new = add_key(settings.runs, settings.key_name, settings.role)
    note = "keep it now: only its digest is stored"
    call.finish(new, lambda: rows([("name", new.name), ("role", new.role), ("key", new.key), ("note", note)]))
    if stdout_failure():
        revoke_key(settings.runs, new.name)
        log.warning("The key could not be shown, so it is revoked. Make another under a new name.")
