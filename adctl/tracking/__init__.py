"""Run tracking: which models there are, what was made from each, and which is best.

The folders are the truth. Each command that makes something from a model leaves a small file in the folder of its run;
the database is an index of these folders, which the next reader brings up to date, and `adctl runs index` rebuilds it.
"""

SERVER_VARIABLE = "ADCTL_DATABASE_URL"
"""Environment variable that names a database server, which takes the place of a file beside the runs."""

DATABASE_FILE = "runs.db"
"""Name of that file."""

TABLES_VERSION = "0002"
"""Newest version of the tables; see `adctl/tracking/migrations`."""
