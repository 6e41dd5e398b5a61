"""Command `adctl fetch`: datasets and bundles."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from adctl.cli.output import Call, rows, stderr

if TYPE_CHECKING:
    from adctl.config import FetchSettings
    from adctl.fetching.catalogue import RemoteFile
    from adctl.fetching.datasets import FetchResult
    from adctl.fetching.finding import DatasetStatus


def run(call: Call[FetchSettings]) -> int | None:
    """Fetch a dataset, unpack a bundle, or list the datasets."""
    settings = call.settings
    if settings.verify:
        from adctl.cli import fetch_verify

        return fetch_verify.run(call)
    if call.asked("list") or (settings.what is None and settings.source is None):
        _list(call, settings.what)
    elif settings.what is None:
        _unpack_bundle(call)
    else:
        _dataset(call, settings.what)
    return None


def digest_state(*, verified: bool) -> str:
    """Return in words whether a digest was published."""
    return "as published" if verified else "unverified: no digest is published; this one was recorded"


def _list(call: Call[FetchSettings], what: str | None) -> None:
    from adctl.fetching.catalogue import find_entry
    from adctl.fetching.finding import list_datasets

    entries = list_datasets()
    if what is not None:
        name = find_entry(what).name
        (entry,) = (entry for entry in entries if entry.name == name)
        call.finish(entry, lambda: rows(_details(entry)))
        return
    headers = ("name", "dataset", "size", "digest", "licence", "commercial use", "here")
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
        return "manual"
    if entry.size is None:
        return "generated" if entry.verified is None else "?"
    return format_bytes(entry.size)


def _details(entry: DatasetStatus) -> list[tuple[str, str]]:
    return [
        ("dataset", entry.title),
        ("categories", ", ".join(entry.categories) or "the folders of the source"),
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
    """Return the addresses of a file, with its published length and digest."""
    from adctl.fetching.download import format_bytes

    size = "length unknown" if remote.size is None else format_bytes(remote.size)
    digest = f"sha256 {remote.sha256}" if remote.sha256 else f"md5 {remote.md5}" if remote.md5 else "unverified"
    return f"{' or '.join(remote.urls)} ({size}, {digest})"


def _dataset(call: Call[FetchSettings], name: str) -> None:
    from adctl.fetching.datasets import fetch_dataset
    from adctl.fetching.download import Transfer

    settings = call.settings
    result = fetch_dataset(
        name,
        categories=settings.category,
        source=settings.source,
        accept_license=settings.accept_license or _ask(call, name),
        force=settings.force,
        transfer=Transfer.of(settings),
        reporter=call.reporter,
    )
    call.finish(result, lambda: rows(_fetched(result)))


def _ask(call: Call[FetchSettings], name: str) -> bool:
    """Show a licence that has to be accepted, and ask, if a person is at the terminal."""
    from adctl.fetching.datasets import licence_to_accept

    entry = licence_to_accept(name, call.settings.category)
    if entry is None or call.as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    terms = [("licence", entry.licence), ("terms", entry.terms), ("see", entry.homepage)]
    stderr().print(rows([("dataset", entry.title), *terms]))
    return typer.confirm("Do you accept these terms?", err=True)


def _fetched(result: FetchResult) -> list[tuple[str, str]]:
    state = "was already here" if result.already else "fetched"
    shown = [
        ("dataset", f"{result.name} {state}: {result.root}"),
        ("categories", ", ".join(result.categories)),
        ("licence", result.licence),
    ]
    if result.sha256 is not None:
        shown.append(("sha256", f"{result.sha256} ({digest_state(verified=result.verified)})"))
    shown += [("note", note) for note in result.notes]
    use = f"adctl train --dataset {result.name} --category {result.categories[0]}"
    return [*shown, ("next", use)]


def _unpack_bundle(call: Call[FetchSettings]) -> None:
    from adctl.fetching.bundles import install_bundle

    settings = call.settings
    assert settings.source is not None
    result = install_bundle(
        settings.source, accept_license=settings.accept_license, force=settings.force, reporter=call.reporter
    )
    shown = [("digest", f"{result.digest} (of SHA256SUMS: compare it with the digest you were given)")]
    shown += [("dataset", f"{fetched.name}: {', '.join(fetched.categories)}") for fetched in result.datasets]
    shown += [("weights", str(fetched.path)) for fetched in result.weights]
    call.finish(result, lambda: rows(shown))
