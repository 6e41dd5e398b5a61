"""Options shared by commands, each declared once.

Every option of a setting is named like the setting and defaults to None here: "not typed". Real defaults live
in `adctl.config`; the help repeats them, and a test sees to it that it does so truly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from adctl.choices import DETECTORS


def value(text: str, *, default: str | None = None, metavar: str = "NAME") -> Any:
    """An option whose default, repeated in the help, is decided in `adctl.config`."""
    shown = text if default is None else f"{text} [default: {default}]"
    return typer.Option(help=shown, show_default=False, metavar=metavar)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but results and errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more, with tracebacks for defects of adctl.")]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file, TOML, YAML or JSON; flags and ADCTL_* go before it.", metavar="FILE"),
]
Runs = Annotated[Path | None, value("Folder of runs.", default="runs", metavar="DIR")]

Device = Annotated[str | None, value("Where to compute: auto, cpu, cuda or mps.", default="auto")]
Gpu = Annotated[int | None, value("Number of the GPU; implies --device cuda.", metavar="N")]
BatchSize = Annotated[str | None, value("Images at once: a number, or auto.", default="auto", metavar="N")]
Workers = Annotated[int | None, value("Threads that read images.", default="2", metavar="N")]
Seed = Annotated[int | None, value("Seed of everything random.", default="0", metavar="N")]
Arch = Annotated[
    str | None,
    value(
        f"Detector: {', '.join(DETECTORS)}, or one that an installed package brings.",
        default="patchcore",
    ),
]

Data = Annotated[
    Path | None, value("Data set in MVTec AD layout: a category, or the folder of categories.", metavar="DIR")
]
Dataset = Annotated[str | None, value("A data set that 'adctl fetch' brought, such as demo or mvtec.")]
Category = Annotated[str | None, value("Category of the data set; in train, 'all' trains on each.")]
Model = Annotated[
    Path | None, value("Model file, or folder or name of a run; the last one when left out.", metavar="FILE")
]
