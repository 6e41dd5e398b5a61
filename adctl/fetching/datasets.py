"""Fetch data sets and store them in the layout of adctl, which is that of MVTec AD."""

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
    from collections.abc import Callable, Sequence
    from pathlib import Path

_STORED_LAYOUT = "mvtec"
"""Layout in which all data sets are stored."""


@dataclass(frozen=True)
class FetchResult:
    """A fetched data set.

    Attributes:
        name: Name in the catalogue.
        root: Its folder, with one subfolder per category.
        categories: Requested categories, all of which are on this machine now.
        licence: Short name of its licence.
        bytes: Size of the sources of these categories: downloads, local files, or generated files.
        verified: Whether all sources were checked against published digests; true for data that adctl generates.
        sha256: Digest of the one source archive; None if there were several or none.
        already: Whether everything was on this machine before.
        notes: Notes for the user, in sentences.
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
    """Fetch a data set, or some of its categories.

    Args:
        name: Name in the catalogue.
        categories: Categories to fetch; all when empty.
        source: Archive, folder or bundle to take it from instead of the network.
        accept_license: Accept the licence; needed once if it restricts use.
        root: Folder of all fetched data; `data_dir()` when None.
        force: Fetch again if it is here already.
        transfer: Download settings.
        reporter: Receives progress.

    Raises:
        UsageError: The data set or category is unknown, the licence was not accepted, or the user has to download it.
        FetchError: The download failed, or a file is damaged or not the expected one.
        DataError: The source does not contain the categories in the layout published by the authors.
        OutputError: Files cannot be written, or the disk is too small.
    """
    entry = find_entry(name)
    for category in categories:
        store.check_category(entry, category)
    folder = (root or data_dir()) / name
    if entry.kind is DatasetKind.GENERATED:
        return _generate(entry, folder, reporter, force=force)
    wanted = tuple(sorted(set(categories))) or entry.categories
    if wanted and not force and not store.missing_categories(folder, wanted):
        return _result(entry, folder, wanted, already=True)
    _require_licence(entry, accepted=accept_license)
    with store.fetch_lock(folder):
        store.remove_leftovers(folder)
        missing = wanted if force else store.missing_categories(folder, wanted)
        request = FetchRequest(entry, folder, missing, named=bool(categories))
        fetched, notes = (
            _fetch(request, source, transfer or Transfer(), reporter) if missing or not wanted else ((), ())
        )
        shutil.rmtree(request.staging, ignore_errors=True)
    present = tuple(name for name in wanted or fetched if not store.missing_categories(folder, [name]))
    return replace(_result(entry, folder, present, already=not fetched), notes=notes)


def licence_to_accept(name: str, categories: Sequence[str] = (), *, root: Path | None = None) -> CatalogueEntry | None:
    """Return the data set if its licence must be accepted before it is fetched; None if it is here or unrestricted.

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
            f"If you accept it (see {entry.homepage}), add --accept-license.",
        )


def _fetch(
    request: FetchRequest, source: Path | None, transfer: Transfer, reporter: Reporter
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Fetch and store the categories one after another; return their names, and notes for the user."""
    sources = local_sources(request, source, reporter) if source else remote_sources(request, reporter, transfer)
    before = store.read_provenance(request.folder)
    fetched: list[str] = []
    notes: list[str] = []
    for unpacked in sources:
        new: dict[str, Provenance] = {}
        for category, (place, layout) in _find_categories(unpacked, request).items():
            notes += _store_category(request, unpacked, category, place, layout, reporter)
            new[category] = unpacked.category_provenance.get(category, unpacked.provenance)
        store.record_provenance(request.entry, request.folder, new)
        notes += _digest_changes(before, new)
        fetched += new
    return tuple(fetched), tuple(notes)


def _find_categories(source: FetchSource, request: FetchRequest) -> dict[str, tuple[Path, str]]:
    """Return the folder and the layout (published or stored) of each requested category in a source."""
    from adctl.fetching.converters import load_converter

    entry, required = request.entry, source.required
    stored_before = any(source.tree.glob(f"**/{DIGESTS}"))
    for layout in dict.fromkeys([_STORED_LAYOUT if stored_before else entry.layout, _STORED_LAYOUT]):
        found = load_converter(layout).find(source.tree, entry.categories)
        if not found:
            continue
        if "" in found:
            if len(required) != 1:
                raise UsageError(
                    f"{source.display_path} contains one category of {entry.title}, but not its name.",
                    "Name it with --category.",
                )
            found = {required[0]: found[""]}
        missing = [category for category in required if category not in found]
        if missing:
            raise DataError(f"{source.display_path} does not contain {', '.join(missing)}.", _expected_layout(layout))
        wanted = required or request.categories or tuple(found)
        return {name: (found[name], layout) for name in wanted if name in found}
    what = ", ".join(required) or f"any category of {entry.title}"
    raise DataError(f"{source.display_path} does not contain {what}.", _expected_layout(entry.layout))


def _expected_layout(layout: str) -> str:
    """Return the description of a layout from its converter's docstring, as the remedy of an error."""
    from adctl.fetching.converters import load_converter

    lines = (load_converter(layout).__doc__ or "").splitlines()
    paths = [" ".join(line.split()) for line in lines if line.startswith("    ")]
    return "Expected " + "; ".join(paths[:3]) + "; or the layout of MVTec AD."


def _store_category(
    request: FetchRequest, source: FetchSource, category: str, place: Path, layout: str, reporter: Reporter
) -> list[str]:
    """Write a category to a temporary folder with its digests, then move it to its place; return notes."""
    from adctl.fetching.converters import load_converter
    from adctl.fetching.converters.items import write_category

    _verify_stored(place)
    new = request.staging / "laid_out" / category
    items = load_converter(layout).read(place, category, request.entry.categories)
    with reporter.stage(f"writing {category}") as update:
        written = write_category(items, new, move=source.movable, progress=update)
    if not store.holds_category(new):
        raise DataError(
            f"{source.display_path} contains no good training images of {category}.", _expected_layout(layout)
        )
    with reporter.stage(f"computing digests of {category}") as update:
        write_digests(new, progress=update)
    store.install_category(new, request.folder, category)
    wrong = written.mismatched_masks
    if not wrong:
        return []
    return [f"Masks of {category} that differ in size from their images: {len(wrong)}, such as {wrong[0]}."]


def _verify_stored(place: Path) -> None:
    """Verify a category that adctl stored on another machine against its digests, if it has them."""
    if not (place / DIGESTS).is_file():
        return
    found = compare_digests(place, read_digests(place / DIGESTS))
    if not found.intact:
        wrong = (*found.changed, *found.missing)
        raise FetchError(
            f"{place} does not match its {DIGESTS}. Files that differ: {len(wrong)}, such as {wrong[0]}.",
            f"Copy it again, or delete {DIGESTS} there to take it as it is.",
        )


def _digest_changes(before: dict[str, Provenance], now: dict[str, Provenance]) -> list[str]:
    """Return a note for each category whose unverified source has another digest than at the last fetch."""
    return [
        f"The source file of {category} has changed since the last fetch, and no digest is published to tell which is "
        f"right: {before[category].sha256} before, {provenance.sha256} now."
        for category, provenance in now.items()
        if not provenance.verified
        and category in before
        and before[category].urls == provenance.urls
        and None not in {before[category].sha256, provenance.sha256}
        and before[category].sha256 != provenance.sha256
    ]


def _generate(entry: CatalogueEntry, folder: Path, reporter: Reporter, *, force: bool) -> FetchResult:
    generated = False
    with reporter.stage(f"generating {entry.name}") as update:

        def update_progress(done: int, total: int) -> None:
            nonlocal generated
            generated = True
            update(done, total)

        # An existing data set may be in a read-only folder, where not even a lock can be created.
        with store.fetch_lock(folder) if force or store.missing_categories(folder, entry.categories) else nullcontext():
            if force:
                for new in _draw(entry, files.make_folder(folder / store.STAGING), update_progress):
                    store.install_category(new, folder, new.name)
                shutil.rmtree(folder / store.STAGING, ignore_errors=True)
            else:
                _draw(entry, folder, update_progress)
            if generated:
                _record_generated(entry, folder)
    return _result(entry, folder, entry.categories, already=not generated)


def _draw(entry: CatalogueEntry, root: Path, progress: Callable[[int, int], None]) -> list[Path]:
    """Draw the categories of a generated data set; return their folders."""
    if entry.layout == "trays":
        from adctl.fetching import demo_trays

        return [demo_trays.generate(root, category, progress=progress) for category in entry.categories]
    from adctl.fetching import demo_dataset

    return [demo_dataset.generate(root, progress=progress)]


def _record_generated(entry: CatalogueEntry, folder: Path) -> None:
    for category in entry.categories:
        write_digests(folder / category)
    size = sum((folder / path).stat().st_size for path in list_files(folder))
    store.record_provenance(entry, folder, dict.fromkeys(entry.categories, Provenance(bytes=size, verified=True)))


def _result(entry: CatalogueEntry, folder: Path, categories: tuple[str, ...], *, already: bool) -> FetchResult:
    known = store.read_provenance(folder)
    # Categories from one archive share one provenance, which counts once.
    provenances = {known.get(category, Provenance()) for category in categories}
    digests = {provenance.sha256 for provenance in provenances}
    return FetchResult(
        name=entry.name,
        root=folder,
        categories=categories,
        licence=entry.licence,
        bytes=sum(provenance.bytes for provenance in provenances),
        verified=all(provenance.verified for provenance in provenances),
        sha256=digests.pop() if len(digests) == 1 else None,
        already=already,
    )
