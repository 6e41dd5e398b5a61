"""Export of the index of runs as CSV or JSON."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from adctl import files
from adctl.errors import UsageError
from adctl.names import csv_cell
from adctl.tracking import queries
from adctl.tracking.conditions import COLUMNS, DOCUMENTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def export_runs(runs: Path, out: Path, conditions: Sequence[str] = (), *, overwrite: bool = False) -> int:
    """Write the runs that meet the conditions to a file; return their number.

    Raises:
        UsageError: The ending of the file is unknown, or the file is not one that adctl wrote.
        OutputError: The file cannot be written.
    """
    if out.suffix.lower() not in (".csv", ".json"):
        raise UsageError(f"{out} has an unknown ending.", "Use .csv or .json.")
    files.require_replaceable([out], overwrite=overwrite)
    found = [row.values for row in queries.find_runs(runs, conditions, "id")]
    if out.suffix.lower() == ".json":
        files.write_json(out, {"schema": "adctl.runs/1", "runs": found})
        return len(found)
    metrics = sorted({name for row in found for name in row["metrics"]})
    columns = [name for name in COLUMNS if name not in DOCUMENTS]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([*columns, "tags", *metrics])
    for row in found:
        cells = [
            *(row[name] for name in columns),
            " ".join(row["tags"]),
            *(row["metrics"].get(name) for name in metrics),
        ]
        writer.writerow([csv_cell(cell) for cell in cells])
    files.write_text(out, table.getvalue())
    return len(found)
