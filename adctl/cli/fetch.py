"""`adctl fetch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adctl.cli import options as opt
from adctl.cli.check import check
from adctl.cli.output import Call, rows
from adctl.errors import UsageError

if TYPE_CHECKING:
    from adctl.config import FetchSettings


def fetch(
    ctx: typer.Context,
    what: Annotated[
        str | None, typer.Argument(help="A data set such as demo or mvtec, 'weights' or 'check'.", show_default=False)
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(help="After 'weights': the timm model. After 'check': the folder.", show_default=False),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List what can be fetched, and stop.")] = False,
    category: Annotated[
        list[str] | None, typer.Option(help="Only this category; may be repeated.", metavar="NAME")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Take it from this archive or folder, not from the network.", metavar="PATH"),
    ] = None,
    accept_license: Annotated[
        bool | None, typer.Option("--accept-license", help="Accept the data set's licence.")
    ] = None,
    force: Annotated[bool | None, typer.Option("--force", help="Fetch again what is there.")] = None,
    sheet: Annotated[Path | None, opt.value("With 'check': write what was found as a picture.", metavar="PNG")] = None,
    strict: Annotated[bool | None, typer.Option("--strict", help="With 'check': exit with 1 on warnings too.")] = None,
    config: opt.Config = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Bring data sets and backbone weights to this machine, verified."""
    call = Call(ctx)
    from adctl.config import FetchSettings

    settings = call.settings(FetchSettings).settings
    if list_ or settings.what is None:
        _list(call)
    elif settings.what == "weights":
        _weights(call, settings)
    elif settings.what == "check":
        check(call, settings)
    else:
        _dataset(call, settings)


def _list(call: Call) -> None:
    from adctl.fetching import listing

    entries = listing()
    shown = [(e.name, e.title, e.licence, "here" if e.fetched else "") for e in entries]
    call.finish(entries, lambda: rows(shown, "name", "data set", "licence", ""))


def _weights(call: Call, settings: FetchSettings) -> None:
    from adctl.fetching import fetch_weights

    if settings.name is None:
        raise UsageError("Which weights?", "Name a timm model: adctl fetch weights wide_resnet50_2")
    with call.reporter.stage(f"weights of {settings.name}", in_bytes=True) as update:
        result = fetch_weights(settings.name, progress=update)
    call.finish(result, lambda: rows([("weights", str(result.path)), ("sha256", result.sha256)]))


def _dataset(call: Call, settings: FetchSettings) -> None:
    from adctl.fetching import fetch_dataset

    assert settings.what is not None
    with call.reporter.stage(settings.what, in_bytes=settings.what != "demo") as update:
        result = fetch_dataset(
            settings.what,
            categories=settings.category,
            source=settings.source,
            accept_license=settings.accept_license,
            progress=update,
            force=settings.force,
        )
    state = "was here already" if result.already else "fetched"
    shown = [
        ("data set", f"{result.name} {state}: {result.root}"),
        ("categories", ", ".join(result.categories)),
        ("licence", result.licence),
    ]
    if result.sha256 is not None:
        shown.append(("sha256", f"{result.sha256} ({'as published' if result.verified else 'none is published'})"))
    use = f"adctl train --dataset {result.name} --category {result.categories[0]}"
    call.finish(result, lambda: rows([*shown, ("next", use)]))
