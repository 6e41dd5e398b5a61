"""Grid of trainings: each category with each detector and each seed, summarised in one table.

    runs/NAME/
      CATEGORY-ARCH-seedN/ ...   run of each combination, with its scores of the test images in test-scores/
      summary.json               settings, rows and table; a later call continues from it
      results.csv                one line for each combination
      table.md                   mean and standard deviation over seeds, by category and detector
      registry.toml              model of each category, for `adctl score --model`, if there is one for each

If a combination fails, its error is recorded and the others continue. A later call with the same --name trains only the
missing and failed combinations, so an interrupted grid loses one combination at most. Within a category, frozen
features are computed once for all detectors and seeds.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from adctl import files, run_folder
from adctl.config import LoadedSettings, TrainSettings
from adctl.datasets import ALL_CATEGORIES, categories_of, open_dataset
from adctl.detectors.components.shared_feature_cache import shared_features
from adctl.detectors.registry import detector_class
from adctl.errors import AdctlError
from adctl.metrics.mean_std import MeanStd, mean_std, mean_stds
from adctl.names import printable
from adctl.progress import SILENT, Reporter
from adctl.tracking.loggers.run_loggers import finished
from adctl.tracking.own_files import clear_own_files
from adctl.training.evaluate import DEFECT_METRICS, METRICS, can_test, evaluate_on_test
from adctl.training.grid_folder import (
    check_grid,
    find_grid,
    known_rows,
    listed,
    new_grid,
    ordered,
    shared_settings,
    write_grid,
)
from adctl.training.resume import run_lock
from adctl.training.single_run import new_loggers, train_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    Method = Callable[[LoadedSettings[TrainSettings], Sequence["Combination"], Path, Reporter], Iterator["GridRow"]]

log = logging.getLogger(__name__)

SCHEMA = "adctl.grid/1"
REGISTRY = "registry.toml"
MEAN_CATEGORY = "mean"
"""Name of the mean over all categories in the table."""

SHARED_NOTE = "Features of frozen backbones are shared, so later trainings take less time than they would alone."

_AXES = frozenset({"arch", "category", "seed", "seeds"})
_LAST_COLUMNS = ("train_seconds", "score_seconds", "shared", "images", "threshold", "run", "sha256", "error")


@dataclass(frozen=True)
class Combination:
    """One training of the grid.

    Attributes:
        category: The category, or None if the dataset has none.
        arch: Name of the detector.
        seed: Seed of all random numbers, the split included.
    """

    category: str | None
    arch: str
    seed: int


@dataclass(frozen=True)
class GridRow:
    """Result of one combination.

    Attributes:
        category: The category, or None if the dataset has none.
        arch: Name of the detector.
        seed: Seed of all random numbers.
        run: Name of the run's folder; None if the training failed.
        sha256: Digest of the model file.
        images: Number of training images.
        threshold: Threshold of the model.
        train_seconds: Time of training; shorter if features were shared with an earlier combination.
        score_seconds: Time of scoring, also shorter with shared features; None without labelled test images.
        shared: Number of images, in training, calibration and scoring, whose features were already computed.
        metrics: Metrics on the test images, by the names of `adctl.training.evaluate.metrics_of`.
        error: Error message if the training failed, or None.
    """

    category: str | None
    arch: str
    seed: int
    run: str | None = None
    sha256: str | None = None
    images: int | None = None
    threshold: float | None = None
    train_seconds: float | None = None
    score_seconds: float | None = None
    shared: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def combination(self) -> Combination:
        """The combination of this result."""
        return Combination(self.category, self.arch, self.seed)


@dataclass(frozen=True)
class GridSummaryRow:
    """Mean and standard deviation over seeds of one detector on one category, or on the mean of all categories.

    Attributes:
        category: The category, None if the dataset has none, or `mean` for the mean over categories.
        arch: Name of the detector.
        seeds: Number of successful seeds.
        failed: Number of failed seeds.
        metrics: Metrics by the names of `adctl.training.evaluate.metrics_of`.
        train_seconds: Time of one training; None if all failed.
    """

    category: str | None
    arch: str
    seeds: int
    failed: int
    metrics: dict[str, MeanStd]
    train_seconds: MeanStd | None


@dataclass(frozen=True)
class GridResult:
    """Result of a grid.

    Attributes:
        folder: Folder of the runs and tables.
        rows: Result of each combination, ordered by category, detector and seed.
        table: Mean and standard deviation over seeds.
    """

    folder: Path
    rows: tuple[GridRow, ...]
    table: tuple[GridSummaryRow, ...]

    @property
    def failed(self) -> int:
        """Number of failed combinations."""
        return sum(row.error is not None for row in self.rows)


def is_grid(settings: TrainSettings) -> bool:
    """Return whether the settings describe more than one training."""
    several = [
        not settings.one_model and settings.category == ALL_CATEGORIES,
        not settings.one_model and "," in (settings.category or ""),
        "," in settings.arch,
        len(settings.seeds) > 1,
    ]
    return any(several)


def combinations(settings: TrainSettings) -> tuple[Combination, ...]:
    """Return all combinations of the settings.

    Raises:
        UsageError: A detector is unknown, or the category is `all` and the dataset has no categories.
    """
    archs = listed(settings.arch)
    for arch in (*archs, *(name.partition(".")[0] for name in settings.options if "." in name)):
        detector_class(arch)
    seeds = dict.fromkeys(settings.seeds or (settings.seed,))
    names: Sequence[str | None] = [None]
    if settings.one_model:
        names = [settings.category]
    elif settings.category == ALL_CATEGORIES:
        names = categories_of(settings)
    elif settings.category is not None:
        names = listed(settings.category)
    return tuple(Combination(name, arch, seed) for name in names for arch in archs for seed in seeds)


def train_grid(
    loaded: LoadedSettings[TrainSettings], reporter: Reporter = SILENT, train: Method | None = None
) -> GridResult:
    """Train and test each combination of category, detector and seed that an earlier call has not completed.

    Args:
        loaded: The settings with their origins; categories, detectors and seeds may be lists.
        reporter: Receiver of progress.
        train: Method that trains the missing combinations; None for `train_in_turn`.

    Raises:
        UsageError: A name is unknown, a flag cannot be used in a grid, or the folder has a grid with other settings.
        OutputError: The runs cannot be written.
    """
    settings = loaded.settings
    check_grid(settings)
    wanted = combinations(settings)
    new_loggers(replace(settings, arch=wanted[0].arch))  # raises before a training starts
    folder = _folder(settings)
    with run_lock(folder):
        return _train_all(loaded, wanted, folder, reporter, train or train_in_turn)


def _train_all(
    loaded: LoadedSettings[TrainSettings],
    wanted: Sequence[Combination],
    folder: Path,
    reporter: Reporter,
    train: Method,
) -> GridResult:
    """Train the combinations that the folder lacks."""
    settings = loaded.settings
    done = known_rows(folder, SCHEMA, GridRow, shared_settings(settings, _AXES))
    rows = {row.combination: row for row in done if row.error is None}
    complete = len(rows.keys() & set(wanted))
    if complete:
        log.info("%d of %d combinations are already complete.", complete, len(wanted))
    missing = [one for one in wanted if one not in rows]
    for row in train(loaded, missing, folder, reporter):
        rows[row.combination] = row
        _write(folder, settings, ordered(rows, wanted))
    result = _write(folder, settings, ordered(rows, wanted))
    _write_registry(result)
    last = next((row.run for row in reversed(result.rows) if row.run), None)
    if last is not None:
        run_folder.set_last(settings.runs, "model", folder / last / run_folder.MODEL)
    return result


def train_in_turn(
    loaded: LoadedSettings[TrainSettings], missing: Sequence[Combination], folder: Path, reporter: Reporter
) -> Iterator[GridRow]:
    """Train combinations in this process; yield the result of each.

    Args:
        loaded: Settings of the grid.
        missing: The combinations.
        folder: Folder of the grid.
        reporter: Receiver of progress.
    """
    failed_loggers: set[str] = set()
    for category in dict.fromkeys(one.category for one in missing):
        with shared_features() as store:
            for one in missing:
                if one.category == category:
                    log.info("Combination %d of %d: %s.", missing.index(one) + 1, len(missing), name_of(one))
                    before = store.hits
                    row = train_one(loaded, one, folder, failed_loggers, reporter)
                    yield replace(row, shared=store.hits - before)


def tabulate(rows: Sequence[GridRow]) -> tuple[GridSummaryRow, ...]:
    """Return mean and standard deviation over seeds by category and detector, then for the mean over categories.

    The mean over categories is computed for each seed with results of all categories.
    """
    categories = dict.fromkeys(row.category for row in rows)
    archs = dict.fromkeys(row.arch for row in rows)
    lines = [
        _line(category, arch, [row for row in rows if (row.category, row.arch) == (category, arch)])
        for category in categories
        for arch in archs
    ]
    if len(categories) > 1:
        lines += [_mean_line(arch, [row for row in rows if row.arch == arch], len(categories)) for arch in archs]
    return tuple(line for line in lines if line.seeds + line.failed)


def markdown(result: GridResult) -> str:
    """Return the table as Markdown, with notes and the failed combinations."""
    names = [name for name in METRICS if any(name in line.metrics for line in result.table)]
    head = ["category", "detector", *(METRICS[name] for name in names), "train, s", "seeds"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for line in result.table:
        cells = [str(line.metrics.get(name, "")) for name in names]
        seconds = f"{line.train_seconds.mean:.1f}" if line.train_seconds else ""
        lines.append(f"| {' | '.join([_shown(line.category), line.arch, *cells, seconds, str(line.seeds)])} |")
    for table in defect_tables(result):
        title = f"{table.metric} by defect type" + (f", {table.category}" if table.category else "")
        lines += ["", f"{title}:", "", f"| detector | {' | '.join(map(_cell, table.defects))} |"]
        lines += ["|" + "---|" * (1 + len(table.defects))]
        lines += [f"| {' | '.join([arch, *cells])} |" for arch, cells in table.cells.items()]
    lines += ["", "± is the sample standard deviation over seeds."]
    if any(line.category == MEAN_CATEGORY for line in result.table):
        lines.append(f"`{MEAN_CATEGORY}` is the mean over categories, for seeds with results of all categories.")
    if any(row.shared for row in result.rows):
        lines.append(SHARED_NOTE)
    failures = [row for row in result.rows if row.error is not None]
    if failures:
        lines += ["", "Failed:", ""]
        lines += [f"- {_shown(row.category)}, {row.arch}, seed {row.seed}: {row.error}" for row in failures]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class DefectTable:
    """One metric by defect type, for the detectors on one category.

    Attributes:
        category: The category, or None if the dataset has none.
        metric: Label of the metric.
        defects: Defect types, the columns.
        cells: Mean and standard deviation over seeds as text, in the order of `defects`, for each detector.
    """

    category: str | None
    metric: str
    defects: tuple[str, ...]
    cells: dict[str, tuple[str, ...]]


def defect_tables(result: GridResult) -> list[DefectTable]:
    """Return the tables by defect type, for each category and each metric of `DEFECT_METRICS` that exists."""
    tables = []
    for category in dict.fromkeys(line.category for line in result.table if line.category != MEAN_CATEGORY):
        lines = [line for line in result.table if line.category == category]
        for name in DEFECT_METRICS:
            columns = _defect_columns([line.metrics for line in lines], name)
            cells = {line.arch: tuple(str(line.metrics.get(column, "")) for column in columns) for line in lines}
            defects = tuple(column.partition(".")[2] for column in columns)
            tables += [DefectTable(category, METRICS[name], defects, cells)] if columns else []
    return tables


def _defect_columns(metrics: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    return sorted({key for own in metrics for key in own if key.startswith(f"{name}.")})


def _folder(settings: TrainSettings) -> Path:
    """Return the folder of an earlier call with the same name, or a new one."""
    folder = find_grid(settings, SCHEMA)
    if folder is None:
        folder = new_grid(settings, settings.arch, settings.category or "")
        _write(folder, settings, [])
    return folder


def name_of(one: Combination) -> str:
    """Return the name of a run, with all parts even if they do not vary, so that a later, larger grid finds it."""
    return "-".join(filter(None, (one.category, one.arch, f"seed{one.seed}"))).replace("/", "_").replace(",", "+")


def train_one(
    loaded: LoadedSettings[TrainSettings],
    one: Combination,
    folder: Path,
    failed_loggers: set[str],
    reporter: Reporter = SILENT,
) -> GridRow:
    """Train and test one combination; an error is in the result.

    Args:
        loaded: Settings of the grid.
        one: The combination.
        folder: Folder of the grid.
        failed_loggers: Names of the loggers that failed before; changed in place.
        reporter: Receiver of progress.
    """
    name = name_of(one)
    clear_own_files(folder / name)
    own = replace(
        loaded.settings,
        category=one.category,
        arch=one.arch,
        seed=one.seed,
        seeds=(),
        ray=None,
        runs=folder,
        name=name,
        options=_options(loaded.settings.options, one.arch),
    )
    try:
        with finished(new_loggers(own, folder.name, failed_loggers)) as loggers:
            trained = train_once(LoadedSettings(own, loaded.origins), reporter, loggers)
            assert trained is not None
            tested = None
            if can_test(open_dataset(own).test):
                tested = evaluate_on_test(trained.model, own, reporter)
                loggers.log_metrics(tested.metrics)
    except AdctlError as error:
        log.warning("%s: %s %s", name, error.message, error.remedy)
        return GridRow(one.category, one.arch, one.seed, error=error.message)
    except Exception as error:  # noqa: BLE001 - a failed combination must not end a long grid
        log.warning("%s: %s: %s", name, type(error).__name__, error)
        return GridRow(one.category, one.arch, one.seed, error=f"{type(error).__name__}: {error}")
    return GridRow(
        category=one.category,
        arch=one.arch,
        seed=one.seed,
        run=name,
        sha256=trained.sha256,
        images=trained.images,
        threshold=trained.calibration.threshold,
        train_seconds=round(trained.seconds, 3),
        score_seconds=round(tested.seconds, 3) if tested else None,
        metrics=tested.metrics if tested else {},
    )


def _options(given: dict[str, Any], arch: str) -> dict[str, Any]:
    """Return the options for one detector: `patchcore.coreset_ratio` is for patchcore, a name without dot for all."""
    bare = {name: value for name, value in given.items() if "." not in name}
    own = {name.removeprefix(f"{arch}."): value for name, value in given.items() if name.startswith(f"{arch}.")}
    return bare | own


def _line(category: str | None, arch: str, rows: Sequence[GridRow]) -> GridSummaryRow:
    successful = [row for row in rows if row.error is None]
    seconds = [row.train_seconds for row in successful if row.train_seconds is not None]
    return GridSummaryRow(
        category,
        arch,
        seeds=len(successful),
        failed=len(rows) - len(successful),
        metrics=mean_stds(row.metrics for row in successful),
        train_seconds=mean_std(seconds) if seconds else None,
    )


def _mean_line(arch: str, rows: Sequence[GridRow], categories: int) -> GridSummaryRow:
    by_seed: dict[int, list[GridRow]] = {}
    for row in rows:
        if row.error is None:
            by_seed.setdefault(row.seed, []).append(row)
    complete = [seed_rows for seed_rows in by_seed.values() if len(seed_rows) == categories]
    means = [_means(seed_rows) for seed_rows in complete]
    seconds = [row.train_seconds for seed_rows in complete for row in seed_rows if row.train_seconds is not None]
    seeds = len(dict.fromkeys(row.seed for row in rows))
    return GridSummaryRow(
        MEAN_CATEGORY,
        arch,
        len(complete),
        seeds - len(complete),
        mean_stds(means),
        mean_std(seconds) if seconds else None,
    )


def _means(rows: Sequence[GridRow]) -> dict[str, float]:
    """Return the mean over categories of each metric that all categories have, for one seed."""
    return {
        name: value.mean for name, value in mean_stds(row.metrics for row in rows).items() if value.count == len(rows)
    }


def _write(folder: Path, settings: TrainSettings, rows: Sequence[GridRow]) -> GridResult:
    result = GridResult(folder, tuple(rows), tabulate(rows))
    summary = {
        "schema": SCHEMA,
        "settings": shared_settings(settings, _AXES),
        "combinations": [asdict(row) for row in rows],
        "table": [asdict(line) for line in result.table],
    }
    defects = [column for name in DEFECT_METRICS for column in _defect_columns([row.metrics for row in rows], name)]
    columns = ("category", "arch", "seed", *METRICS, *_LAST_COLUMNS, *defects)
    lines = ({**asdict(row), **row.metrics} for row in rows)
    write_grid(folder, columns, lines, markdown(result), summary)
    return result


def _write_registry(result: GridResult) -> None:
    """Write a registry if several categories have one model each."""
    models = {row.category: row.run for row in result.rows if row.category is not None and row.run is not None}
    if not 1 < len(models) == len(result.rows):
        return
    lines = ["# Made by adctl train; use it with: adctl score IMAGES --model registry.toml", "nearest = true"]
    for name, run in models.items():
        lines += ["", f"[products.{json.dumps(name)}]", f"model = {json.dumps(run)}"]
    files.write_text(result.folder / REGISTRY, "\n".join(lines) + "\n")


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|")


def _shown(category: str | None) -> str:
    return "" if category is None else category
