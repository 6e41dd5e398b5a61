"""`adctl fetch`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adctl.cli import options as opt
from adctl.cli.check import check
from adctl.cli.output import Call, rows, stderr
from adctl.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.config import FetchBundleSettings, FetchSettings, FetchWeightsSettings, TransferSettings
    from adctl.fetching.bundles import BundleInstallResult, BundleResult
    from adctl.fetching.catalogue import RemoteFile
    from adctl.fetching.datasets import FetchResult
    from adctl.fetching.download import Transfer
    from adctl.fetching.finding import DatasetStatus
    from adctl.fetching.verifying import VerifyResult


def fetch(
    ctx: typer.Context,
    what: Annotated[
        str | None,
        typer.Argument(help="A data set such as demo or mvtec, 'weights', 'bundle' or 'check'.", show_default=False),
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(
            help="After 'weights': the timm model. After 'bundle' and 'check': the folder.", show_default=False
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List what can be fetched, and stop.")] = False,
    category: Annotated[
        list[str] | None, typer.Option(help="Only this category; may be repeated.", metavar="NAME")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Take it from this archive, folder or bundle, not from the network.", metavar="PATH"
        ),
    ] = None,
    accept_license: Annotated[
        bool | None, typer.Option("--accept-license", help="Accept the data set's licence.")
    ] = None,
    force: Annotated[bool | None, typer.Option("--force", help="Fetch again what is there.")] = None,
    verify: Annotated[
        bool | None, typer.Option("--verify", help="Hold what was fetched against its digests, and stop.")
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            help="With 'bundle': NAME, NAME/CATEGORY or weights/MODEL; repeatable; all that is here when left out.",
            metavar="WHAT",
        ),
    ] = None,
    wheels: Annotated[
        bool | None, typer.Option("--wheels/--no-wheels", help="With 'bundle': gather adctl itself too.")
    ] = None,
    requirement: Annotated[
        str | None, opt.value("With 'bundle': what pip installs over there, instead of adctl.")
    ] = None,
    platform: Annotated[str | None, opt.value("With 'bundle': the platform over there, such as win_amd64.")] = None,
    python: Annotated[
        str | None, opt.value("With 'bundle': the Python over there, such as 3.12.", metavar="VERSION")
    ] = None,
    connections: Annotated[
        int | None, opt.value("Connections at once for one large file.", default="4", metavar="N")
    ] = None,
    attempts: Annotated[
        int | None, opt.value("Tries in a row at one address that bring nothing.", default="4", metavar="N")
    ] = None,
    timeout: Annotated[
        float | None, opt.value("Seconds to wait for a server's answer.", default="30.0", metavar="SECONDS")
    ] = None,
    sheet: Annotated[Path | None, opt.value("With 'check': write what was found as a picture.", metavar="PNG")] = None,
    strict: Annotated[bool | None, typer.Option("--strict", help="With 'check': exit with 1 on warnings too.")] = None,
    config: opt.Config = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Bring data sets and backbone weights to this machine, verified."""
    call = Call(ctx)
    from adctl.config import FetchBundleSettings, FetchCheckSettings, FetchSettings, FetchWeightsSettings

    if what == "weights":
        _weights(call, call.settings(FetchWeightsSettings, model_name=name).settings)
        return
    if what == "bundle":
        _bundle(call, call.settings(FetchBundleSettings, folder=name).settings)
        return
    if what == "check":
        check(call, call.settings(FetchCheckSettings, folder=name).settings)
        return
    settings = call.settings(FetchSettings).settings
    if settings.verify:
        _verify(call, settings)
    elif settings.what is None and settings.source is not None and not list_:
        _deliver(call, settings, settings.source)
    elif list_ or settings.what is None:
        _list(call, settings.what)
    else:
        _dataset(call, settings, settings.what)


def _transfer(settings: TransferSettings) -> Transfer:
    from adctl.fetching.download import Transfer

    names = ("attempts", "timeout", "backoff", "connections", "smallest_piece")
    return Transfer(**{name: getattr(settings, name) for name in names})


# ---- what there is


def _list(call: Call, what: str | None) -> None:
    from adctl.fetching.catalogue import find_entry
    from adctl.fetching.finding import list_datasets

    entries = list_datasets()
    if what is not None:
        name = find_entry(what).name
        (entry,) = (entry for entry in entries if entry.name == name)
        call.finish(entry, lambda: rows(_details(entry)))
        return
    headers = ("name", "data set", "size", "digest", "licence", "commercial use", "here")
    call.finish(entries, lambda: rows(map(_line, entries), *headers))


_COMMERCIAL = {True: "yes", False: "no", None: "ask"}
_DIGEST = {True: "published", False: "unverified", None: ""}


def _line(entry: DatasetStatus) -> tuple[str, ...]:
    total = len(entry.categories)
    here = "" if not entry.fetched else "all" if len(entry.here) == total else f"{len(entry.here)} of {total or 'any'}"
    return (
        entry.name,
        entry.title,
        _size(entry),
        _DIGEST[entry.verified],
        entry.licence,
        _COMMERCIAL[entry.commercial],
        here,
    )


def _size(entry: DatasetStatus) -> str:
    from adctl.fetching.download import format_bytes

    if entry.manual:
        return "by hand"
    if entry.size is None:
        return "drawn" if entry.verified is None else "?"
    return format_bytes(entry.size)


def _details(entry: DatasetStatus) -> list[tuple[str, str]]:
    return [
        ("data set", entry.title),
        ("categories", ", ".join(entry.categories) or "those of the folder"),
        ("here", ", ".join(entry.here) or "none"),
        ("size", _size(entry)),
        ("digest", _DIGEST[entry.verified]),
        ("licence", f"{entry.licence}. {entry.terms}"),
        ("commercial use", _COMMERCIAL[entry.commercial]),
        ("homepage", entry.homepage),
        ("cite", entry.citation),
        ("folder", str(entry.root)),
        *(("file", _file(remote)) for remote in entry.files),
    ]


def _file(remote: RemoteFile) -> str:
    """Its length, digest and addresses, as far as they are published."""
    from adctl.fetching.download import format_bytes

    size = "length unknown" if remote.size is None else format_bytes(remote.size)
    digest = f"sha256 {remote.sha256}" if remote.sha256 else f"md5 {remote.md5}" if remote.md5 else "unverified"
    return f"{' or '.join(remote.urls)} ({size}, {digest})"


def _verify(call: Call, settings: FetchSettings) -> None:
    from adctl.fetching.verifying import verify

    results = verify(settings.what, categories=settings.category, reporter=call.reporter)
    call.finish(results, lambda: rows(map(_verdict, results), "what", "files", "state", "remedy"))
    if not all(result.intact for result in results):
        raise typer.Exit(1)


def _verdict(result: VerifyResult) -> tuple[str, ...]:
    counts = {"changed": result.changed, "missing": result.missing, "not listed": result.unlisted}
    differ = [f"{len(paths)} {how}, such as {paths[0]}" for how, paths in counts.items() if paths]
    state = "no digests recorded" if result.intact is None else "; ".join(differ) or "intact"
    return (result.name, str(result.files), state, result.remedy)


# ---- bringing


def _weights(call: Call, settings: FetchWeightsSettings) -> None:
    from adctl.fetching.weights import fetch_weights

    if settings.model_name is None:
        raise UsageError("Which weights?", "Name a timm model: adctl fetch weights wide_resnet50_2")
    result = fetch_weights(
        settings.model_name, source=settings.source, transfer=_transfer(settings), reporter=call.reporter
    )
    shown = [("weights", str(result.path)), ("sha256", f"{result.sha256} ({_checked(verified=result.verified)})")]
    call.finish(result, lambda: rows([*shown, ("licence", result.licence or "not stated")]))


def _dataset(call: Call, settings: FetchSettings, name: str) -> None:
    from adctl.fetching.datasets import fetch_dataset

    result = fetch_dataset(
        name,
        categories=settings.category,
        source=settings.source,
        accept_license=settings.accept_license or _ask(call, name, settings),
        force=settings.force,
        transfer=_transfer(settings),
        reporter=call.reporter,
    )
    call.finish(result, lambda: rows(_fetched(result)))


def _ask(call: Call, name: str, settings: FetchSettings) -> bool:
    """Show a licence that has to be accepted, and ask, where somebody is there to answer."""
    from adctl.fetching.datasets import licence_to_accept

    entry = licence_to_accept(name, settings.category)
    if entry is None or call.as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    terms = [("licence", entry.licence), ("terms", entry.terms), ("see", entry.homepage)]
    stderr().print(rows([("data set", entry.title), *terms]))
    return typer.confirm("Do you accept these terms?", err=True)


def _checked(*, verified: bool) -> str:
    return "as published" if verified else "unverified: none is published; this one was recorded"


def _fetched(result: FetchResult) -> list[tuple[str, str]]:
    state = "was here already" if result.already else "fetched"
    shown = [
        ("data set", f"{result.name} {state}: {result.root}"),
        ("categories", ", ".join(result.categories)),
        ("licence", result.licence),
    ]
    if result.sha256 is not None:
        shown.append(("sha256", f"{result.sha256} ({_checked(verified=result.verified)})"))
    shown += [("note", note) for note in result.notes]
    use = f"adctl train --dataset {result.name} --category {result.categories[0]}"
    return [*shown, ("next", use)]


# ---- bundles


def _bundle(call: Call, settings: FetchBundleSettings) -> None:
    from adctl.fetching.bundles import make_bundle

    if settings.folder is None:
        raise UsageError("Which folder to bundle into?", "Name a new one: adctl fetch bundle OUT")
    keys = ("include", "wheels", "requirement", "platform", "python", "accept_license")
    options: dict[str, Any] = {key: getattr(settings, key) for key in keys}
    result = make_bundle(settings.folder, **options, transfer=_transfer(settings), reporter=call.reporter)
    call.finish(result, lambda: _bundled(result))


def _bundled(result: BundleResult) -> RenderableType:
    from adctl.fetching.download import format_bytes

    held = [f"{name} ({', '.join(categories)})" for name, categories in result.datasets.items()]
    return rows(
        [
            ("bundle", f"{result.path}: {result.files} files, {format_bytes(result.bytes)}"),
            ("data sets", "; ".join(held) or "none"),
            ("weights", ", ".join(result.weights) or "none"),
            ("digest", f"{result.digest} (of SHA256SUMS: pass it on by another way)"),
            *(("over there" if index == 0 else "", line) for index, line in enumerate(result.install)),
        ]
    )


def _deliver(call: Call, settings: FetchSettings, source: Path) -> None:
    from adctl.fetching.bundles import install_bundle

    result: BundleInstallResult = install_bundle(
        source, accept_license=settings.accept_license, force=settings.force, reporter=call.reporter
    )
    shown = [("digest", f"{result.digest} (of SHA256SUMS: compare it with what you were told)")]
    shown += [("data set", f"{fetched.name}: {', '.join(fetched.categories)}") for fetched in result.datasets]
    shown += [("weights", str(fetched.path)) for fetched in result.weights]
    call.finish(result, lambda: rows(shown))
