"""Run tracking: which models there are, what was made from each, and which is best.

The folders are the truth. Each command that makes something from a model leaves a small file in the folder of its run;
the database is an index of these folders, which the next reader brings up to date, and `adctl runs index` rebuilds it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SERVER_VARIABLE = "ADCTL_DATABASE_URL"
"""Environment variable that names a database server, which takes the place of a file beside the runs."""

DATABASE_FILE = "runs.db"
"""Name of that file."""

TABLES_VERSION = "0003"
"""Newest version of the tables; see `adctl/tracking/migrations`."""


def is_missing(runs: Path) -> bool:
    """Return whether the database is a file that does not exist."""
    return SERVER_VARIABLE not in os.environ and not (runs / DATABASE_FILE).exists()
