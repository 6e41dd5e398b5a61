"""Migration of the run database to the newest version of its tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from adctl.errors import DataError

if TYPE_CHECKING:
    from sqlalchemy import Connection

SCRIPTS = Path(__file__).parent / "migrations"


def upgrade(connection: Connection, found: str | None, place: str) -> None:
    """Upgrade the tables.

    Args:
        connection: Connection in a transaction.
        found: Version of the tables; None if there are none.
        place: Place of the database, for messages.

    Raises:
        DataError: The tables are of a newer adctl.
    """
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise DataError(
            f"{place} has tables of version {found}, which a newer adctl wrote.",
            "Upgrade adctl on this machine: pip install --upgrade adctl",
        )
    command.upgrade(config, "head")
