"""Bundles: copy data sets, weights and adctl itself to a machine without a network."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from adctl import __version__, files
from adctl.errors import FetchError, OutputError, UsageError
from adctl.fetching import packing, store
from adctl.fetching.catalogue import DatasetKind, find_entry
from adctl.fetching.datasets import FetchResult, fetch_dataset
from adctl.fetching.digests import compare_digests, read_digests, write_digests
from adctl.fetching.download import Transfer
from adctl.fetching.finding import list_datasets
from adctl.fetching.weights import FetchedWeights, fetch_weights, list_weights
from adctl.fetching.wheelhouse import collect_wheels
from adctl.paths import data_dir
from adctl.progress import SILENT, Reporter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from adctl.config import FetchBundleSettings


@dataclass(frozen=True)
class BundleResult:
    """A new bundle.

    Attributes:
        path: Folder of the bundle.
        datasets: Categories of each data set in it.
        weights: Models whose weights are in it.
        files: Number of listed files.
        bytes: Total size of these files.
        digest: SHA-256 of the list of digests. Sent to the receiver separately, it verifies the whole bundle.
        install: Commands to run on the other machine, one per line.
    """

    path: Path
    datasets: dict[str, tuple[str, ...]]
    weights: tuple[str, ...]
    files: int
    bytes: int
    digest: str
    install: tuple[str, ...]


@dataclass(frozen=True)
class BundleInstallResult:
    """Data sets and weights installed from a bundle.

    Attributes:
        digest: SHA-256 of the bundle's list of digests.
        datasets: Installed data sets.
        weights: Installed weights.
    """

    digest: str
    datasets: tuple[FetchResult, ...]
    weights: tuple[FetchedWeights, ...]


@dataclass(frozen=True)
class _Selection:
    """Data sets with their categories, and names of weights, to put into a bundle."""

    datasets: dict[str, tuple[str, ...]]
    weights: tuple[str, ...]


def make_bundle(
    settings: FetchBundleSettings, *, root: Path | None = None, reporter: Reporter = SILENT
) -> BundleResult:
    """Collect data sets, weights and wheels for a machine without a network; missing data is fetched first.

    Args:
        settings: Folder to create, contents, the other machine, and settings of downloads.
        root: Folder of all fetched data; `data_dir()` when None.
        reporter: Receives progress.

    Raises:
        UsageError: No folder is given, a requested name does not exist, or there is nothing to bundle.
        FetchError: Something could not be fetched, or pip could not collect the wheels.
        OutputError: The bundle cannot be written.
    """
    out = settings.folder
    if out is None:
        raise UsageError("No folder for the bundle was given.", "Name a new one: adctl fetch bundle OUT")
    base, transfer = root or data_dir(), Transfer.of(settings)
    selection = _select(settings.include, base)
    if not (selection.datasets or selection.weights or settings.wheels):
        raise UsageError("There is nothing to bundle.", "Name data sets or weights with --include NAME.")
    for name, categories in selection.datasets.items():
        fetch_dataset(
            name,
            categories=categories,
            accept_license=settings.accept_license,
            root=base,
            transfer=transfer,
            reporter=reporter,
        )
    for name in selection.weights:
        fetch_weights(name, root=base, transfer=transfer, reporter=reporter)
    with _complete_folder(out) as folder:
        lines = []
        if settings.wheels:
            with reporter.stage("collecting wheels"):
                needed = collect_wheels(
                    folder / "wheels",
                    requirement=settings.requirement,
                    platform=settings.platform,
                    python=settings.python,
                )
            lines.append(f"python -m pip install --no-index --find-links wheels '{needed}'")
        lines.append("adctl fetch --from . --accept-license")
        _copy_data(selection, base, folder, reporter)
        _write_manifest(selection, base, folder, tuple(lines))
        with reporter.stage("computing digests") as update:
            write_digests(folder, packing.SUMS, progress=update)
    listed = read_digests(out / packing.SUMS)
    size = sum((out / path).stat().st_size for path in listed)
    digest = files.sha256_file(out / packing.SUMS)
    return BundleResult(out, selection.datasets, selection.weights, len(listed), size, digest, tuple(lines))


def install_bundle(
    bundle: Path, *, accept_license: bool = False, root: Path | None = None, force: bool = False,
    reporter: Reporter = SILENT,
) -> BundleInstallResult:  # fmt: skip
    """Install everything in a bundle on this machine.

    Args:
        bundle: Folder of the bundle.
        accept_license: Accept the licences of all data sets in it.
        root: Folder of all fetched data; `data_dir()` when None.
        force: Replace data that is here already.
        reporter: Receives progress.

    Raises:
        UsageError: The folder is not a bundle.
        FetchError: A file differs from the list of digests.
    """
    if not packing.is_bundle(bundle):
        raise UsageError(
            f"{bundle} is not a bundle made by 'adctl fetch bundle'.",
            "To take one data set from it, name the data set: adctl fetch NAME --from FOLDER",
        )
    with reporter.stage("verifying digests") as update:
        found = compare_digests(bundle, read_digests(bundle / packing.SUMS), progress=update)
    if not found.intact:
        wrong = ", ".join((*found.changed, *found.missing))
        raise FetchError(f"The bundle {bundle} is damaged: {wrong}.", "Copy it again.")
    manifest = packing.read_manifest(bundle)
    datasets = tuple(
        fetch_dataset(
            name, categories=tuple(packed["categories"]), source=bundle, accept_license=accept_license, root=root,
            force=force, reporter=reporter,
        )
        for name, packed in manifest["datasets"].items()
    )  # fmt: skip
    weights = tuple(fetch_weights(name, source=bundle, root=root, reporter=reporter) for name in manifest["weights"])
    return BundleInstallResult(files.sha256_file(bundle / packing.SUMS), datasets, weights)


def _select(include: Sequence[str], base: Path) -> _Selection:
    """Return what is named, or everything on this machine if nothing is named."""
    if not include:
        # Data that adctl generates itself need not be copied.
        copied = [entry for entry in list_datasets(base) if find_entry(entry.name).kind is not DatasetKind.GENERATED]
        categories = {entry.name: entry.here for entry in copied if entry.fetched}
        return _Selection(categories, tuple(path.name.removesuffix(".safetensors") for path in list_weights(base)))
    datasets: dict[str, set[str]] = {}
    weights: list[str] = []
    for item in include:
        name, _, rest = item.partition("/")
        if name == "weights":
            weights.append(rest)
            continue
        entry = find_entry(name)
        if rest:
            store.check_category(entry, rest)
        datasets.setdefault(name, set()).update([rest] if rest else entry.categories)
    return _Selection({name: tuple(sorted(wanted)) for name, wanted in datasets.items()}, tuple(dict.fromkeys(weights)))


def _copy_data(selection: _Selection, base: Path, folder: Path, reporter: Reporter) -> None:
    """Write the archives of the categories and copy the weights."""
    for name, categories in selection.datasets.items():
        for category in categories:
            with reporter.stage(f"packing {name}/{category}") as update:
                packing.pack_category(base / name / category, folder / packing.archive_path(name, category), update)
    for name in selection.weights:
        target = files.make_folder(folder / "weights")
        for ending in (".safetensors", ".json"):
            with files.output_errors(target):
                shutil.copyfile(base / "weights" / f"{name}{ending}", target / f"{name}{ending}")


def _write_manifest(selection: _Selection, base: Path, folder: Path, lines: tuple[str, ...]) -> None:
    manifest: dict[str, Any] = {
        "format": packing.FORMAT,
        "adctl": __version__,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "datasets": {name: _facts(name, categories, base) for name, categories in selection.datasets.items()},
        "weights": list(selection.weights),
        "install": list(lines),
    }
    files.write_text(folder / packing.MANIFEST, files.to_json(manifest, indent=2) + "\n")
    files.write_text(folder / "INSTALL.txt", _instructions(manifest, lines))


def _facts(name: str, categories: tuple[str, ...], base: Path) -> dict[str, Any]:
    entry, known = find_entry(name), store.read_provenance(base / name)
    provenances = {category: asdict(known.get(category, store.Provenance())) for category in categories}
    shared = {key: getattr(entry, key) for key in ("title", "licence", "terms", "homepage", "citation")}
    return {**shared, "categories": provenances}


def _instructions(manifest: dict[str, Any], lines: tuple[str, ...]) -> str:
    licences = [
        f"  {name}: {facts['licence']}. {facts['terms']}".rstrip() for name, facts in manifest["datasets"].items()
    ]
    return "\n".join(
        [
            f"Made with adctl {manifest['adctl']} on {manifest['made']}. Run in this folder:",
            "",
            f"  sha256sum -c {packing.SUMS}",
            *(f"  {line}" for line in lines),
            "",
            "Licences of the data sets, which --accept-license accepts:",
            "",
            *(licences or ["  none in this bundle"]),
            "",
        ]
    )


@contextmanager
def _complete_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `out` when it is complete."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} exists already.", "Choose a new folder for the bundle.")
    with files.atomic_folder(out) as temporary:
        complete = files.make_folder(temporary / "complete")
        yield complete
        with files.output_errors(out):
            if out.exists():
                out.rmdir()
            complete.rename(out)
