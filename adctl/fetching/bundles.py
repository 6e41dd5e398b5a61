"""Carrying data sets, weights and adctl itself to a machine without a network."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adctl import __version__, files
from adctl.errors import FetchError, OutputError, UsageError
from adctl.fetching import packing, store
from adctl.fetching.catalogue import DatasetKind, find_entry
from adctl.fetching.datasets import FetchResult, fetch_dataset
from adctl.fetching.digests import compare_digests, read_digests, write_digests
from adctl.fetching.finding import list_datasets
from adctl.fetching.weights import FetchedWeights, fetch_weights, list_weights
from adctl.fetching.wheelhouse import collect_wheels
from adctl.paths import data_dir
from adctl.progress import SILENT, Reporter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adctl.fetching.download import Transfer


@dataclass(frozen=True)
class BundleResult:
    """A bundle that was made.

    Attributes:
        path: Its folder.
        datasets: Categories of each data set in it.
        weights: Models whose weights are in it.
        files: How many are listed.
        bytes: Of all of them.
        digest: SHA-256 of the list of digests: tell it over another way, and the whole bundle is vouched for.
        install: What to type over there, line by line.
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
    """What a bundle brought to this machine.

    Attributes:
        digest: SHA-256 of its list of digests.
        datasets: The data sets.
        weights: The weights.
    """

    digest: str
    datasets: tuple[FetchResult, ...]
    weights: tuple[FetchedWeights, ...]


@dataclass(frozen=True)
class _Cargo:
    datasets: dict[str, tuple[str, ...]]
    weights: tuple[str, ...]


def make_bundle(
    out: Path,
    *,
    include: Sequence[str] = (),
    wheels: bool = True,
    requirement: str | None = None,
    platform: str | None = None,
    python: str | None = None,
    accept_license: bool = False,
    root: Path | None = None,
    transfer: Transfer | None = None,
    reporter: Reporter = SILENT,
) -> BundleResult:
    """Gather what a closed machine needs; what is not here yet is fetched first.

    Args:
        out: The folder to make.
        include: `NAME`, `NAME/CATEGORY` or `weights/MODEL`; everything that is here when empty.
        wheels: Whether adctl and what it needs are gathered too.
        requirement: In place of adctl, what to install over there.
        platform: Of that machine, as pip names it; as here when None.
        python: Version of Python of that machine; as here when None.
        accept_license: For what has to be fetched.
        root: The folder of all fetched data; `data_dir()` when None.
        transfer: How downloads are done.
        reporter: Told how far it is.

    Raises:
        UsageError: Something of that does not exist, or there is nothing to gather.
        FetchError: Something could not be fetched, or is no longer what was fetched.
        OutputError: It cannot be written.
    """
    base = root or data_dir()
    cargo = _cargo(include, base)
    if not (cargo.datasets or cargo.weights or wheels):
        raise UsageError("There is nothing to bundle.", "Name data sets or weights with --include NAME.")
    for name, categories in cargo.datasets.items():
        fetch_dataset(
            name, categories=categories, accept_license=accept_license, root=base, transfer=transfer, reporter=reporter
        )
    for name in cargo.weights:
        fetch_weights(name, root=base, transfer=transfer, reporter=reporter)
    with _whole_folder(out) as folder:
        lines = []
        if wheels:
            with reporter.stage("gathering wheels"):
                named = collect_wheels(folder / "wheels", requirement=requirement, platform=platform, python=python)
            lines.append(f"python -m pip install --no-index --find-links wheels '{named}'")
        lines.append("adctl fetch --from . --accept-license")
        _load(cargo, base, folder, reporter)
        _describe(cargo, base, folder, tuple(lines))
        with reporter.stage("listing digests") as update:
            write_digests(folder, packing.SUMS, progress=update)
    listed = read_digests(out / packing.SUMS)
    size = sum((out / path).stat().st_size for path in listed)
    digest = files.sha256_file(out / packing.SUMS)
    return BundleResult(out, cargo.datasets, cargo.weights, len(listed), size, digest, tuple(lines))


def install_bundle(
    bundle: Path, *, accept_license: bool = False, root: Path | None = None, force: bool = False,
    reporter: Reporter = SILENT,
) -> BundleInstallResult:  # fmt: skip
    """Bring everything in a bundle to this machine.

    Args:
        bundle: Its folder.
        accept_license: Of all data sets in it.
        root: The folder of all fetched data; `data_dir()` when None.
        force: Bring again what is there.
        reporter: Told how far it is.

    Raises:
        UsageError: It is none.
        FetchError: It is not what its list of digests says.
    """
    if not packing.is_bundle(bundle):
        raise UsageError(
            f"{bundle} is no bundle of 'adctl fetch bundle'.",
            "To take one data set from it: adctl fetch NAME --from ...",
        )
    with reporter.stage("checking digests") as update:
        found = compare_digests(bundle, read_digests(bundle / packing.SUMS), progress=update)
    if not found.harmless:
        wrong = ", ".join((*found.changed, *found.missing))
        raise FetchError(f"The bundle {bundle} is damaged: {wrong}.", "Copy it again.")
    told = packing.read_manifest(bundle)
    datasets = tuple(
        fetch_dataset(
            name, categories=tuple(packed["categories"]), source=bundle, accept_license=accept_license, root=root,
            force=force, reporter=reporter,
        )
        for name, packed in told["datasets"].items()
    )  # fmt: skip
    weights = tuple(fetch_weights(name, source=bundle, root=root, reporter=reporter) for name in told["weights"])
    return BundleInstallResult(files.sha256_file(bundle / packing.SUMS), datasets, weights)


def _cargo(include: Sequence[str], base: Path) -> _Cargo:
    """What to carry: what is named, or everything that is here."""
    if not include:
        # What adctl draws by itself needs no carrying.
        kept = [entry for entry in list_datasets(base) if find_entry(entry.name).kind is not DatasetKind.GENERATED]
        here = {entry.name: entry.here for entry in kept if entry.fetched}
        return _Cargo(here, tuple(path.name.removesuffix(".safetensors") for path in list_weights(base)))
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
    return _Cargo({name: tuple(sorted(wanted)) for name, wanted in datasets.items()}, tuple(dict.fromkeys(weights)))


def _load(cargo: _Cargo, base: Path, folder: Path, reporter: Reporter) -> None:
    """Pack categories and copy weights."""
    for name, categories in cargo.datasets.items():
        for category in categories:
            with reporter.stage(f"packing {name}/{category}") as update:
                packing.pack_category(base / name / category, folder / packing.archive_path(name, category), update)
    for name in cargo.weights:
        target = files.make_folder(folder / "weights")
        for ending in (".safetensors", ".json"):
            with files.output_errors(target):
                shutil.copyfile(base / "weights" / f"{name}{ending}", target / f"{name}{ending}")


def _describe(cargo: _Cargo, base: Path, folder: Path, lines: tuple[str, ...]) -> None:
    told: dict[str, Any] = {
        "format": packing.FORMAT,
        "adctl": __version__,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "datasets": {name: _facts(name, categories, base) for name, categories in cargo.datasets.items()},
        "weights": list(cargo.weights),
        "install": list(lines),
    }
    files.write_text(folder / packing.MANIFEST, json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    files.write_text(folder / "INSTALL.txt", _instructions(told, lines))


def _facts(name: str, categories: tuple[str, ...], base: Path) -> dict[str, Any]:
    entry, known = find_entry(name), store.read_provenance(base / name)
    origins = {category: asdict(known.get(category, store.Provenance())) for category in categories}
    shared = {key: getattr(entry, key) for key in ("title", "licence", "terms", "homepage", "citation")}
    return {**shared, "categories": origins}


def _instructions(told: dict[str, Any], lines: tuple[str, ...]) -> str:
    licences = [f"  {name}: {facts['licence']}. {facts['terms']}".rstrip() for name, facts in told["datasets"].items()]
    return "\n".join(
        [
            f"Made with adctl {told['adctl']} on {told['made']}. In this folder:",
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
def _whole_folder(out: Path) -> Iterator[Path]:
    """A folder that gets its name once everything is in it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} exists already.", "Choose a new folder for the bundle.")
    files.make_folder(out.parent)
    with files.output_errors(out):
        box = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        whole = files.make_folder(box / "whole")
        yield whole
        with files.output_errors(out):
            if out.exists():
                out.rmdir()
            os.replace(whole, out)  # noqa: PTH105 - as a folder, not as a file
    finally:
        shutil.rmtree(box, ignore_errors=True)
