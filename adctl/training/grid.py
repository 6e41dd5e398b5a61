"""A grid of trainings in one call: each category with each detector and each seed, one table of mean and spread.

    runs/NAME/
      CATEGORY-ARCH-seedN/ ...   a run each, its scores of the test images in test-scores/
      summary.json               settings, a row a combination, and the table; what a later call goes on from
      results.csv                a line a combination
      table.md                   mean and spread over seeds by category and detector

A combination that fails is noted and the others go on. Called again with the same --name, it does what is missing or
failed: a kill loses one combination at most. Frozen features are computed once for all detectors and seeds that read
the same ones, a category at a time. What training is, `adctl.training.single_run` knows.
"""

from __future__ import annotations

import csv
import io
import logging
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adctl import files, run_folder
from adctl.config import LoadedSettings, TrainSettings
from adctl.datasets import ALL_CATEGORIES, categories_of, open_dataset
from adctl.detectors.components.shared_feature_cache import shared_features
from adctl.detectors.registry import detector_class
from adctl.engine import distributed
from adctl.errors import AdctlError, DataError, UsageError
from adctl.metrics.mean_std import MeanStd, mean_std, mean_stds
from adctl.progress import SILENT, Reporter
from adctl.training.evaluate import METRICS, can_test, evaluate_on_test
from adctl.training.resume import MAY_DIFFER
from adctl.training.single_run import train_once

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)

SCHEMA = "adctl.grid/1"
SUMMARY = "summary.json"
RESULTS = "results.csv"
TABLE = "table.md"
TEST_SCORES = "test-scores"
EVERY = "mean"
"""In place of a category in the table: the mean over all of them."""

SHARED_NOTE = (
    "Features of frozen backbones are shared, so a training that comes later takes less time than it would alone."
)

_AXES = frozenset({"arch", "category", "seed", "seeds"})
_COLUMNS = (
    *("category", "arch", "seed", *METRICS),
    *("train_seconds", "score_seconds", "shared", "images", "threshold", "run", "sha256", "error"),
)


@dataclass(frozen=True)
class Combination:
    """One training of the grid.

    Attributes:
        category: None where the data set has none.
        arch: The detector.
        seed: Of everything random, the split included.
    """

    category: str | None
    arch: str
    seed: int


@dataclass(frozen=True)
class GridRow:
    """What became of one combination.

    Attributes:
        category: See `Combination`.
        arch: Likewise.
        seed: Likewise.
        run: Name of the run's folder; None where it failed.
        sha256: Of the model file.
        images: Good images learned from.
        threshold: Of the model.
        train_seconds: Less where features were shared with an earlier combination.
        score_seconds: Likewise; None without labelled test images.
        shared: How often an image's features were there already, in training, calibrating and scoring together.
        metrics: On the test images, by the names of `adctl.training.evaluate.METRICS`.
        error: Why it failed, or None.
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
        """What it is the outcome of."""
        return Combination(self.category, self.arch, self.seed)


@dataclass(frozen=True)
class GridSummaryRow:
    """Mean and spread over seeds of one detector on one category, or on the mean of all.

    Attributes:
        category: None where the data set has none; `mean` for the mean over categories.
        arch: The detector.
        seeds: How many seeds succeeded.
        failed: How many did not.
        metrics: By the names of `adctl.training.evaluate.METRICS`.
        train_seconds: Of one training; None where none succeeded.
    """

    category: str | None
    arch: str
    seeds: int
    failed: int
    metrics: dict[str, MeanStd]
    train_seconds: MeanStd | None


@dataclass(frozen=True)
class GridResult:
    """What became of all combinations.

    Attributes:
        folder: Where the runs and the tables lie.
        rows: One a combination, category by category, detector by detector, seed by seed.
        table: Mean and spread over seeds.
    """

    folder: Path
    rows: tuple[GridRow, ...]
    table: tuple[GridSummaryRow, ...]

    @property
    def failed(self) -> int:
        """Combinations without a model."""
        return sum(row.error is not None for row in self.rows)


def is_grid(settings: TrainSettings) -> bool:
    """Whether the settings name more than one training."""
    several = [
        settings.category == ALL_CATEGORIES,
        "," in (settings.category or ""),
        "," in settings.arch,
        len(settings.seeds) > 1,
    ]
    return any(several)


def combinations(settings: TrainSettings) -> tuple[Combination, ...]:
    """All trainings that the settings name.

    Raises:
        UsageError: There is no such detector, or `all` without categories.
    """
    archs = _listed(settings.arch)
    for arch in (*archs, *(name.partition(".")[0] for name in settings.options if "." in name)):
        detector_class(arch)
    seeds = dict.fromkeys(settings.seeds or (settings.seed,))
    names: Sequence[str | None] = [None]
    if settings.category == ALL_CATEGORIES:
        names = categories_of(settings)
    elif settings.category is not None:
        names = _listed(settings.category)
    return tuple(Combination(name, arch, seed) for name in names for arch in archs for seed in seeds)


def train_grid(loaded: LoadedSettings[TrainSettings], reporter: Reporter = SILENT) -> GridResult:
    """Train and test every combination of category, detector and seed; go on with what an earlier call left.

    Args:
        loaded: The settings, with lists in place of single names and seeds.
        reporter: Told how far it is.

    Raises:
        UsageError: A name is unknown, a flag does not go with a grid, or the folder was begun with other settings.
        OutputError: Runs cannot be written.
    """
    settings = loaded.settings
    _check(settings)
    wanted = combinations(settings)
    folder, done = _folder(settings)
    rows = {combination: row for combination, row in done.items() if row.error is None}
    there = len(rows.keys() & set(wanted))
    if there:
        log.info("%d of %d combinations are there already.", there, len(wanted))
    for category in dict.fromkeys(one.category for one in wanted):
        with shared_features() as store:
            for one in wanted:
                if one.category == category and one not in rows:
                    log.info("Combination %d of %d: %s.", wanted.index(one) + 1, len(wanted), _name(one))
                    before = store.hits
                    row = _train_one(loaded, one, _name(one), folder, reporter)
                    rows[one] = replace(row, shared=store.hits - before)
                    _write(folder, settings, _ordered(rows, wanted))
    result = _write(folder, settings, _ordered(rows, wanted))
    last = next((row.run for row in reversed(result.rows) if row.run), None)
    if last is not None:
        run_folder.set_last(settings.runs, "model", folder / last / run_folder.MODEL)
    return result


def tabulate(rows: Sequence[GridRow]) -> tuple[GridSummaryRow, ...]:
    """Mean and spread over seeds by category and detector; then of the mean over categories by detector.

    That mean is taken seed by seed, over seeds for which every category has the number.
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
    """The table as Markdown, with what failed and what the numbers mean."""
    names = [name for name in METRICS if any(name in line.metrics for line in result.table)]
    head = ["category", "detector", *(METRICS[name] for name in names), "train, s", "seeds"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for line in result.table:
        cells = [str(line.metrics.get(name, "")) for name in names]
        seconds = f"{line.train_seconds.mean:.1f}" if line.train_seconds else ""
        lines.append(f"| {' | '.join([_shown(line.category), line.arch, *cells, seconds, str(line.seeds)])} |")
    lines += ["", "± is the sample standard deviation over seeds."]
    if any(line.category == EVERY for line in result.table):
        lines.append(f"`{EVERY}` is over categories, seed by seed, where every category has the number.")
    if any(row.shared for row in result.rows):
        lines.append(SHARED_NOTE)
    failures = [row for row in result.rows if row.error is not None]
    if failures:
        lines += ["", "Failed:", ""]
        lines += [f"- {_shown(row.category)}, {row.arch}, seed {row.seed}: {row.error}" for row in failures]
    return "\n".join(lines) + "\n"


def _ordered(rows: dict[Combination, GridRow], wanted: Sequence[Combination]) -> list[GridRow]:
    """Those of this call in their order, then those of earlier calls, which stay in the tables."""
    return [rows[one] for one in dict.fromkeys((*wanted, *rows)) if one in rows]


def _listed(text: str) -> list[str]:
    return list(dict.fromkeys(part for given in text.split(",") if (part := given.strip())))


def _check(settings: TrainSettings) -> None:
    if settings.resume is not None:
        raise UsageError(
            "--resume goes on with one run, not with several.", "Call again with the same --name: what is there stays."
        )
    if settings.folds is not None:
        raise UsageError("--folds goes with one detector, one category and one seed.", "Train those one by one.")
    if distributed.is_launched_externally():
        raise UsageError("Several trainings in one call cannot be started by torchrun.", "Use --devices instead.")


def _folder(settings: TrainSettings) -> tuple[Path, dict[Combination, GridRow]]:
    """The folder, and what became of combinations in an earlier call."""
    if settings.name is not None:
        folder = settings.runs / settings.name
        known = run_folder.read_json(folder / SUMMARY)
        if known is not None and known.get("schema") == SCHEMA:
            _check_same(folder, known.get("settings", {}), _kept(settings))
            return folder, _read_rows(folder, known)
    parts = [part.replace(",", "+") for part in (settings.arch, settings.category or "")]
    folder = run_folder.new_folder(settings.runs, *filter(None, parts), name=settings.name)
    _write(folder, settings, [])
    return folder, {}


def _read_rows(folder: Path, known: dict[str, Any]) -> dict[Combination, GridRow]:
    try:
        rows = [GridRow(**row) for row in known["combinations"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / SUMMARY} is damaged: {error}.", "Choose another --name.") from error
    there = [row for row in rows if row.run is None or (folder / row.run / run_folder.MODEL).is_file()]
    return {row.combination: row for row in there}


def _kept(settings: TrainSettings) -> dict[str, Any]:
    """The settings that all combinations share and that change results; paths absolute."""
    values = {name: value for name, value in settings.to_json().items() if name not in _AXES | MAY_DIFFER}
    for name in values:
        given = getattr(settings, name)
        if isinstance(given, Path):
            values[name] = str(given.absolute())
    return values


def _check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    differing = [f"{name} (was {before[name]!r}, now {now[name]!r})" for name in now if before.get(name) != now[name]]
    if differing:
        raise UsageError(
            f"{folder} was begun with other settings: {'; '.join(differing)}.",
            "Leave those as they were, or choose another --name.",
        )


def _name(one: Combination) -> str:
    """All that can vary, whatever does: a later call with longer lists must find the runs of this one."""
    return "-".join(filter(None, (one.category, one.arch, f"seed{one.seed}"))).replace("/", "_")


def _train_one(
    loaded: LoadedSettings[TrainSettings], one: Combination, name: str, folder: Path, reporter: Reporter
) -> GridRow:
    shutil.rmtree(folder / name, ignore_errors=True)  # of a call that was cut short
    own = replace(
        loaded.settings,
        category=one.category,
        arch=one.arch,
        seed=one.seed,
        seeds=(),
        runs=folder,
        name=name,
        options=_options(loaded.settings.options, one.arch),
    )
    try:
        trained = train_once(LoadedSettings(own, loaded.origins), reporter)
        assert trained is not None
        tested = None
        if can_test(open_dataset(own).test):
            tested = evaluate_on_test(trained.model, own, trained.run / TEST_SCORES, reporter)
    except AdctlError as error:
        log.warning("%s: %s %s", name, error.message, error.remedy)
        return GridRow(one.category, one.arch, one.seed, error=error.message)
    except Exception as error:  # noqa: BLE001 - a night's work must not end with one combination
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
    """Of these options those of one detector: `patchcore.coreset_ratio` is meant for patchcore, a bare name for all."""
    bare = {name: value for name, value in given.items() if "." not in name}
    own = {name.removeprefix(f"{arch}."): value for name, value in given.items() if name.startswith(f"{arch}.")}
    return bare | own


def _line(category: str | None, arch: str, rows: Sequence[GridRow]) -> GridSummaryRow:
    made = [row for row in rows if row.error is None]
    seconds = [row.train_seconds for row in made if row.train_seconds is not None]
    return GridSummaryRow(
        category,
        arch,
        seeds=len(made),
        failed=len(rows) - len(made),
        metrics=mean_stds(row.metrics for row in made),
        train_seconds=mean_std(seconds) if seconds else None,
    )


def _mean_line(arch: str, rows: Sequence[GridRow], categories: int) -> GridSummaryRow:
    by_seed: dict[int, list[GridRow]] = {}
    for row in rows:
        if row.error is None:
            by_seed.setdefault(row.seed, []).append(row)
    whole = [made for made in by_seed.values() if len(made) == categories]
    means = [_means(made) for made in whole]
    seconds = [row.train_seconds for made in whole for row in made if row.train_seconds is not None]
    seeds = len(dict.fromkeys(row.seed for row in rows))
    return GridSummaryRow(
        EVERY, arch, len(whole), seeds - len(whole), mean_stds(means), mean_std(seconds) if seconds else None
    )


def _means(rows: Sequence[GridRow]) -> dict[str, float]:
    """Of one seed, over categories: the numbers that every category has."""
    return {
        name: value.mean for name, value in mean_stds(row.metrics for row in rows).items() if value.count == len(rows)
    }


def _write(folder: Path, settings: TrainSettings, rows: Sequence[GridRow]) -> GridResult:
    result = GridResult(folder, tuple(rows), tabulate(rows))
    summary = {
        "schema": SCHEMA,
        "settings": _kept(settings),
        "combinations": [asdict(row) for row in rows],
        "table": [asdict(line) for line in result.table],
    }
    stream = io.StringIO(newline="")
    table = csv.writer(stream)
    table.writerow(_COLUMNS)
    for row in rows:
        values = {**asdict(row), **row.metrics}
        table.writerow([values.get(name) for name in _COLUMNS])
    files.write_text(folder / RESULTS, stream.getvalue())
    files.write_text(folder / TABLE, markdown(result))
    files.write_json(folder / SUMMARY, summary)
    return result


def _shown(category: str | None) -> str:
    return "" if category is None else category
