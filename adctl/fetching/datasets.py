"""Bringing data sets to this machine, laid out in the one layout that adctl uses."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adctl import files
from adctl.errors import DataError, FetchError, UsageError
from adctl.fetching import store
from adctl.fetching.catalogue import CatalogueEntry, DatasetKind, find_entry
from adctl.fetching.digests import DIGESTS, compare_digests, list_files, read_digests, write_digests
from adctl.fetching.download import Transfer
from adctl.fetching.sources import FetchRequest, FetchSource, local_sources, remote_sources
from adctl.fetching.store import Provenance
from adctl.paths import data_dir
from adctl.progress import SILENT, Reporter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_OWN = "mvtec"
"""The layout that everything ends up in."""


@dataclass(frozen=True)
class FetchResult:
    """A data set on this machine.

    Attributes:
        name: As in the catalogue.
        root: Its folder, which holds one folder a category.
        categories: Those asked for, which are there now.
        licence: The short name of its licence.
        bytes: Of what these categories came from: downloads, files, or what was drawn.
        verified: Whether all of it was checked against a published digest; true of what adctl draws itself.
        sha256: Of the one archive they came from; None when there were several, or none.
        already: Whether everything was there before.
        notes: What the user should know, in sentences.
    """

    name: str
    root: Path
    categories: tuple[str, ...]
    licence: str
    bytes: int
    verified: bool
    sha256: str | None
    already: bool
    notes: tuple[str, ...] = ()


def fetch_dataset(
    name: str,
    *,
    categories: Sequence[str] = (),
    source: Path | None = None,
    accept_license: bool = False,
    root: Path | None = None,
    force: bool = False,
    transfer: Transfer | None = None,
    reporter: Reporter = SILENT,
) -> FetchResult:
    """Bring a data set, or some of its categories, to this machine.

    Args:
        name: As in the catalogue.
        categories: Which ones; all when empty.
        source: An archive or a folder that holds it, or a bundle, for machines without a network.
        accept_license: Needed once where the licence forbids some uses.
        root: The folder of all fetched data; `data_dir()` when None.
        force: Fetch again what is there.
        transfer: How downloads are done.
        reporter: Told how far it is.

    Raises:
        UsageError: There is no such data set or category, the licence was not accepted, or it has to be brought by
            hand.
        FetchError: The download failed, or what came is damaged or not what was promised.
        DataError: What came does not hold the categories in the layout its authors publish.
        OutputError: It cannot be written, or there is no room.
    """
    entry = find_entry(name)
    for category in categories:
        store.check_category(entry, category)
    folder = (root or data_dir()) / name
    if entry.kind is DatasetKind.GENERATED:
        return _draw(entry, folder, reporter, force=force)
    wanted = tuple(sorted(set(categories))) or entry.categories
    if wanted and not force and not store.missing_categories(folder, wanted):
        return _result(entry, folder, wanted, already=True)
    _require_licence(entry, accepted=accept_license)
    with store.fetch_lock(folder):
        store.remove_leftovers(folder)
        missing = wanted if force else store.missing_categories(folder, wanted)
        wish = FetchRequest(entry, folder, missing, named=bool(categories))
        found, notes = _bring(wish, source, transfer or Transfer(), reporter) if missing or not wanted else ((), ())
        shutil.rmtree(wish.staging, ignore_errors=True)
    present = tuple(name for name in wanted or found if not store.missing_categories(folder, [name]))
    return replace(_result(entry, folder, present, already=not found), notes=notes)


def licence_to_accept(name: str, categories: Sequence[str] = (), *, root: Path | None = None) -> CatalogueEntry | None:
    """The data set, if its licence has to be accepted before it can be fetched; None when it is here, or free.

    Raises:
        UsageError: There is no such data set.
    """
    entry = find_entry(name)
    wanted = tuple(categories) or entry.categories
    here = wanted and not store.missing_categories((root or data_dir()) / name, wanted)
    return None if here or not entry.restricted else entry


def _require_licence(entry: CatalogueEntry, *, accepted: bool) -> None:
    if entry.restricted and not accepted:
        raise UsageError(
            f"{entry.title} is under this licence: {entry.licence}. {entry.terms}",
            f"If you accept that (see {entry.homepage}), add --accept-license.",
        )


def _bring(
    wish: FetchRequest, source: Path | None, transfer: Transfer, reporter: Reporter
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Put categories in place, as they come; returns which, and what to say about them."""
    supplies = local_sources(wish, source, reporter) if source else remote_sources(wish, reporter, transfer)
    before = store.read_provenance(wish.folder)
    brought: list[str] = []
    notes: list[str] = []
    for supply in supplies:
        new: dict[str, Provenance] = {}
        for category, (place, layout) in _found(supply, wish).items():
            notes += _lay_out(wish, supply, category, place, layout, reporter)
            new[category] = supply.origins.get(category, supply.origin)
        store.record_provenance(wish.entry, wish.folder, new)
        notes += _changes(before, new)
        brought += new
    return tuple(brought), tuple(notes)


def _found(supply: FetchSource, wish: FetchRequest) -> dict[str, tuple[Path, str]]:
    """Where the wanted categories lie in a tree, and in which layout: their authors', or adctl's own."""
    from adctl.fetching.converters import load_converter

    entry, asked = wish.entry, supply.asked
    laid_out_already = any(supply.tree.glob(f"**/{DIGESTS}"))
    for layout in dict.fromkeys([_OWN if laid_out_already else entry.layout, _OWN]):
        found = load_converter(layout).find(supply.tree, entry.categories)
        if not found:
            continue
        if "" in found:
            if len(asked) != 1:
                raise UsageError(
                    f"{supply.what} holds one category of {entry.title}; which?", "Say which with --category."
                )
            found = {asked[0]: found[""]}
        lacking = [category for category in asked if category not in found]
        if lacking:
            raise DataError(f"{supply.what} does not hold {', '.join(lacking)}.", _expected(layout))
        wanted = asked or wish.categories or tuple(found)
        return {name: (found[name], layout) for name in wanted if name in found}
    what = ", ".join(asked) or f"any category of {entry.title}"
    raise DataError(f"{supply.what} does not hold {what}.", _expected(entry.layout))


def _expected(layout: str) -> str:
    """The layout that was looked for, as its converter describes it."""
    from adctl.fetching.converters import load_converter

    described = (load_converter(layout).__doc__ or "").splitlines()
    shape = [line.strip() for line in described if line.startswith("    ")]
    return "Expected " + "; ".join(" ".join(line.split()) for line in shape[:3]) + "; or the layout of MVTec AD."


def _lay_out(
    wish: FetchRequest, supply: FetchSource, category: str, place: Path, layout: str, reporter: Reporter
) -> list[str]:
    """Write a category beside the others, list its digests, and give it its name last."""
    from adctl.fetching.converters import load_converter
    from adctl.fetching.converters.items import write_category

    _check_digests(place)
    new = wish.staging / "laid_out" / category
    with reporter.stage(f"laying out {category}") as update:
        laid = write_category(
            load_converter(layout).read(place, category, wish.entry.categories), new, move=supply.own, progress=update
        )
    if not store.holds_category(new):
        raise DataError(f"{supply.what} holds no good images of {category} to learn from.", _expected(layout))
    with reporter.stage(f"listing digests of {category}") as update:
        write_digests(new, progress=update)
    store.install_category(new, wish.folder, category)
    if not laid.misfits:
        return []
    return [f"{len(laid.misfits)} masks of {category} differ in size from their images, such as {laid.misfits[0]}."]


def _check_digests(place: Path) -> None:
    """What adctl laid out on another machine has to be as it was there."""
    if not (place / DIGESTS).is_file():
        return
    found = compare_digests(place, read_digests(place / DIGESTS))
    if not found.harmless:
        wrong = (*found.changed, *found.missing)
        raise FetchError(
            f"{place} is not as its {DIGESTS} says: {len(wrong)} files differ, such as {wrong[0]}.",
            f"Copy it again, or delete {DIGESTS} there to take it as it is.",
        )


def _changes(before: dict[str, Provenance], now: dict[str, Provenance]) -> list[str]:
    """Say when something unverified is not what came the last time."""
    return [
        f"The file that {category} came from has another digest than the last time, and nobody publishes one: "
        f"{before[category].sha256} before, {origin.sha256} now."
        for category, origin in now.items()
        if not origin.verified
        and category in before
        and before[category].urls == origin.urls
        and None not in {before[category].sha256, origin.sha256}
        and before[category].sha256 != origin.sha256
    ]


def _draw(entry: CatalogueEntry, folder: Path, reporter: Reporter, *, force: bool) -> FetchResult:
    from adctl.fetching import demo_dataset

    drawn = False
    with reporter.stage(f"drawing {entry.name}") as update:

        def note(done: int, total: int) -> None:
            nonlocal drawn
            drawn = True
            update(done, total)

        # What is there already may lie where nothing can be written, not even a lock.
        with store.fetch_lock(folder) if force or store.missing_categories(folder, entry.categories) else nullcontext():
            if force:
                new = demo_dataset.generate(files.make_folder(folder / store.STAGING), progress=note)
                store.install_category(new, folder, new.name)
                shutil.rmtree(folder / store.STAGING, ignore_errors=True)
            else:
                demo_dataset.generate(folder, progress=note)
            if drawn:
                _record_drawn(entry, folder)
    return _result(entry, folder, entry.categories, already=not drawn)


def _record_drawn(entry: CatalogueEntry, folder: Path) -> None:
    for category in entry.categories:
        write_digests(folder / category)
    size = sum((folder / path).stat().st_size for path in list_files(folder))
    store.record_provenance(entry, folder, dict.fromkeys(entry.categories, Provenance(bytes=size, verified=True)))


def _result(entry: CatalogueEntry, folder: Path, categories: tuple[str, ...], *, already: bool) -> FetchResult:
    known = store.read_provenance(folder)
    # Categories from one archive share one origin.
    origins = {known.get(category, Provenance()) for category in categories}
    digests = {origin.sha256 for origin in origins}
    return FetchResult(
        name=entry.name,
        root=folder,
        categories=categories,
        licence=entry.licence,
        bytes=sum(origin.bytes for origin in origins),
        verified=all(origin.verified for origin in origins),
        sha256=digests.pop() if len(digests) == 1 else None,
        already=already,
    )
