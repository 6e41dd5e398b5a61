"""Grid of classifiers: each listed backbone, head, strategy for rare kinds and option with each seed, in one table.

    runs/NAME/
      BACKBONE-HEAD-STRATEGY-seedN/ ...   run of each combination, tested on its test images
      summary.json                        settings, rows and table; a later call continues from it
      results.csv                         one line for each combination
      table.md                            mean and standard deviation over seeds

All settings are checked before the first training. If a combination fails, its error is recorded and the others
continue. A later call with the same --name trains only the missing and failed combinations. The features of a frozen
backbone are computed once for all its heads, strategies and seeds.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from adctl import documents, files, run_folder
from adctl.classification.config import ClassifierConfig
from adctl.classification.training.train import check_classifier, train_classifier
from adctl.config import LoadedSettings, TrainSettings
from adctl.detectors.components import backbones
from adctl.detectors.components.shared_feature_cache import shared_features
from adctl.errors import AdctlError
from adctl.metrics.mean_std import MeanStd, mean_std, mean_stds
from adctl.names import printable
from adctl.progress import SILENT, Reporter
from adctl.tracking.own_files import clear_own_files
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

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from adctl.classification.training.results import ClassifierResult

log = logging.getLogger(__name__)

SCHEMA = "adctl.classifier-grid/1"

METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "macro_auroc": "macro AUROC",
    "ece": "calibration error",
}
"""Metrics of the tables, with their headings; the recall of each kind follows as `recall.KIND`."""

SHARED_NOTE = "Features of a frozen backbone are shared, so later trainings take less time than they would alone."

_RECALL = "recall."
_NOT_LISTED = frozenset({"layers", "leave_out", "seed"})
"""Options of a classifier, besides those of all models, that take a list themselves or have a flag."""

_AXES = frozenset({"backbone", "balance", "options", "seed", "seeds"})
_COLUMNS = ("train_seconds", "shared", "images", "test_images", "run", "sha256", "error")

Value = str | int | float


@dataclass(frozen=True)
class ClassifierVariant:
    """Classifier that is compared with others: settings that the grid lists.

    Attributes:
        backbone: Name of the backbone.
        head: Name of the head.
        balance: Treatment of rare kinds.
        options: Values of other options that are listed.
    """

    backbone: str
    head: str
    balance: str
    options: dict[str, Value] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Value]:
        """All its settings."""
        return {"backbone": self.backbone, "head": self.head, "balance": self.balance, **self.options}

    @property
    def name(self) -> str:
        """Start of the names of its runs: every part even if it does not vary, so that a larger grid finds the run."""
        parts = (self.backbone, self.head, self.balance, *(f"{name}={value}" for name, value in self.options.items()))
        return "-".join(parts).replace("/", "_").replace(":", "_")


@dataclass(frozen=True)
class ClassifierGridRow:
    """Result of one training.

    Attributes:
        variant: The classifier.
        seed: Seed of all random numbers, the split included.
        run: Name of the run's folder; None if the training failed.
        sha256: Digest of the model file.
        images: Number of training images.
        test_images: Number of test images.
        train_seconds: Time of training; shorter if features were shared with an earlier training.
        shared: Number of images, in training and test, whose features were already computed.
        metrics: Metrics on the test images, by the names of `METRICS`, and `recall.KIND` of each kind.
        error: Error message if the training failed, or None.
    """

    variant: ClassifierVariant
    seed: int
    run: str | None = None
    sha256: str | None = None
    images: int | None = None
    test_images: int | None = None
    train_seconds: float | None = None
    shared: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def name(self) -> str:
        """Name of its run."""
        return f"{self.variant.name}-seed{self.seed}"


@dataclass(frozen=True)
class ClassifierGridLine:
    """Mean and standard deviation over seeds of one classifier.

    Attributes:
        variant: The classifier.
        seeds: Number of successful seeds.
        failed: Number of failed seeds.
        metrics: Metrics by the names of `ClassifierGridRow`.
        train_seconds: Time of one training; None if all failed.
    """

    variant: ClassifierVariant
    seeds: int
    failed: int
    metrics: dict[str, MeanStd]
    train_seconds: MeanStd | None


@dataclass(frozen=True)
class ClassifierGridResult:
    """Result of a grid of classifiers.

    Attributes:
        folder: Folder of the runs and tables.
        varied: Names of the settings in which the classifiers differ.
        rows: Result of each training, ordered by classifier and seed.
        table: Mean and standard deviation over seeds of each classifier.
    """

    folder: Path
    varied: tuple[str, ...]
    rows: tuple[ClassifierGridRow, ...]
    table: tuple[ClassifierGridLine, ...]

    @property
    def failed(self) -> int:
        """Number of failed trainings."""
        return sum(row.error is not None for row in self.rows)


def train_classifiers(
    loaded: LoadedSettings[TrainSettings], reporter: Reporter = SILENT
) -> ClassifierResult | ClassifierGridResult:
    """Train a classifier, or a grid of classifiers if settings are lists.

    Raises:
        AdctlError: See `train_classifier` and `train_grid`.
    """
    return train_grid(loaded, reporter) if is_grid(loaded.settings) else train_classifier(loaded, reporter)


def is_grid(settings: TrainSettings) -> bool:
    """Return whether the settings of a classifier describe more than one training."""
    texts = (settings.backbone or "", settings.balance)
    return len(settings.seeds) > 1 or any("," in text for text in texts) or bool(_listed_options(settings))


def variants(settings: TrainSettings) -> tuple[ClassifierVariant, ...]:
    """Return all classifiers of the settings, in the order of their lists."""
    lists: dict[str, list[Value]] = {
        "backbone": [*listed(settings.backbone or "")],
        "head": [],
        "balance": [*listed(settings.balance)],
        **_listed_options(settings),
    }
    for name in ("backbone", "head"):
        lists[name] = lists[name] or [settings.options.get(name) or ClassifierConfig.model_fields[name].default]
    found: list[dict[str, Value]] = [{}]
    for name, values in lists.items():
        found = [{**one, name: value} for one in found for value in values]
    return tuple(map(_variant, found))


def _variant(settings: dict[str, Value]) -> ClassifierVariant:
    backbone, head, balance = (str(settings[name]) for name in ("backbone", "head", "balance"))
    options = {name: value for name, value in settings.items() if name not in ("backbone", "head", "balance")}
    return ClassifierVariant(backbone, head, balance, options)


def train_grid(loaded: LoadedSettings[TrainSettings], reporter: Reporter = SILENT) -> ClassifierGridResult:
    """Train and test each classifier with each seed that an earlier call has not completed.

    Args:
        loaded: The settings with their origins; backbone, balance, seed and options may be lists.
        reporter: Receiver of progress.

    Raises:
        UsageError: A name is unknown, settings contradict each other, or the folder has a grid with other settings.
        OutputError: The runs cannot be written.
    """
    settings = loaded.settings
    check_grid(settings)
    seeds = tuple(dict.fromkeys(settings.seeds or (settings.seed,)))
    wanted = [ClassifierGridRow(variant, seed) for variant in variants(settings) for seed in seeds]
    for row in wanted:
        if row.seed == seeds[0]:
            check_classifier(_of(loaded, row))
    for backbone in dict.fromkeys(row.variant.backbone for row in wanted):
        backbones.find_weights(backbone, settings.weights)  # raises if they are missing
    folder = _folder(settings)
    with run_lock(folder):
        done = known_rows(folder, SCHEMA, ClassifierGridRow, _shared_settings(settings))
        rows = {row.name: row for row in done if row.error is None}
        names = [row.name for row in wanted]
        missing = [row for row in wanted if row.name not in rows]
        if len(missing) < len(wanted):
            log.info("%d of %d trainings are already complete.", len(wanted) - len(missing), len(wanted))
        for row in _train(loaded, missing, folder, reporter):
            rows[row.name] = row
            _write(folder, settings, ordered(rows, names))
        result = _write(folder, settings, ordered(rows, names))
    last = next((row.run for row in reversed(result.rows) if row.run), None)
    if last is not None:
        run_folder.set_last(settings.runs, "model", folder / last / run_folder.MODEL)
    return result


def markdown(result: ClassifierGridResult) -> str:
    """Return the table as Markdown, with notes and the failed trainings."""
    head, lines = table_of(result)
    text = [_markdown_line(head), "|" + "---|" * len(head), *map(_markdown_line, lines)]
    kinds = recalls(result)
    if kinds:
        head, lines = kinds
        text += ["", "Recall of each kind:", "", _markdown_line(head), "|" + "---|" * len(head)]
        text += [_markdown_line(line) for line in lines]
    text += ["", "± is the sample standard deviation over seeds."]
    if any(row.shared for row in result.rows):
        text.append(SHARED_NOTE)
    failures = [f"- {row.name}: {row.error}" for row in result.rows if row.error is not None]
    return "\n".join([*text, *(["", "Failed:", "", *failures] if failures else [])]) + "\n"


def table_of(result: ClassifierGridResult) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and lines: the settings that vary, the metrics, the time of a training and the seeds."""
    names = [name for name in METRICS if any(name in line.metrics for line in result.table)]
    head = (*_described(result), *(METRICS[name] for name in names), "train, s", "seeds")
    return head, [
        (
            *_description(result, line),
            *(str(line.metrics.get(name, "")) for name in names),
            f"{line.train_seconds.mean:.1f}" if line.train_seconds else "",
            str(line.seeds),
        )
        for line in result.table
    ]


def recalls(result: ClassifierGridResult) -> tuple[tuple[str, ...], list[tuple[str, ...]]] | None:
    """Return headings and lines of the recall of each kind; None if all trainings failed."""
    kinds = _recall_names(result.rows)
    if not kinds:
        return None
    head = (*_described(result), *(name.removeprefix(_RECALL) for name in kinds))
    return head, [
        (*_description(result, line), *(str(line.metrics.get(name, "")) for name in kinds)) for line in result.table
    ]


def _listed_options(settings: TrainSettings) -> dict[str, list[Value]]:
    """Return the options that are lists, with their values."""
    singles = ClassifierConfig.model_fields.keys() - (ClassifierConfig.__base__.model_fields.keys() | _NOT_LISTED)  # type: ignore[union-attr]
    found: dict[str, list[Value]] = {}
    for name, value in settings.options.items():
        if name in singles and (isinstance(value, list | tuple) or (isinstance(value, str) and "," in value)):
            found[name] = [_parsed(one) for one in (listed(value) if isinstance(value, str) else value)]
    return found


def _parsed(text: Any) -> Value:
    """Return a value as `--set` would read it alone."""
    with suppress(ValueError):
        value = documents.parse_json(text) if isinstance(text, str) else text
        if isinstance(value, int | float) and not isinstance(value, bool):
            return value
    return str(text)


def _of(loaded: LoadedSettings[TrainSettings], row: ClassifierGridRow, **others: Any) -> LoadedSettings[TrainSettings]:
    """Return the settings of one training."""
    variant, given = row.variant, loaded.settings
    options = {name: value for name, value in given.options.items() if name != "backbone"}
    own = replace(
        given,
        backbone=variant.backbone,
        balance=variant.balance,
        options={**options, "head": variant.head, **variant.options},
        seed=row.seed,
        seeds=(),
        **others,
    )
    return LoadedSettings(own, loaded.origins)


def _train(
    loaded: LoadedSettings[TrainSettings], missing: Sequence[ClassifierGridRow], folder: Path, reporter: Reporter
) -> Iterator[ClassifierGridRow]:
    """Train; yield the result of each. Features are shared by all trainings of a backbone."""
    failed_loggers: set[str] = set()
    for backbone in dict.fromkeys(row.variant.backbone for row in missing):
        with shared_features() as store:
            for number, row in enumerate(missing, 1):
                if row.variant.backbone == backbone:
                    log.info("Training %d of %d: %s.", number, len(missing), row.name)
                    before = store.hits
                    done = _train_one(loaded, row, folder, failed_loggers, reporter)
                    yield replace(done, shared=store.hits - before)


def _train_one(
    loaded: LoadedSettings[TrainSettings],
    row: ClassifierGridRow,
    folder: Path,
    failed_loggers: set[str],
    reporter: Reporter,
) -> ClassifierGridRow:
    """Train and test one combination; an error is in the result."""
    clear_own_files(folder / row.name)
    try:
        own = _of(loaded, row, runs=folder, name=row.name)
        result = train_classifier(own, reporter, group=folder.name, failed_loggers=failed_loggers)
    except AdctlError as error:
        log.warning("%s: %s %s", row.name, error.message, error.remedy)
        return replace(row, error=error.message)
    except Exception as error:  # noqa: BLE001 - a failed training must not end a long grid
        log.warning("%s: %s: %s", row.name, type(error).__name__, error)
        return replace(row, error=f"{type(error).__name__}: {error}")
    return replace(
        row,
        run=row.name,
        sha256=files.sha256_file(result.model),
        images=result.images,
        test_images=result.test_images,
        train_seconds=round(result.seconds, 3),
        metrics=_metrics(result),
    )


def _metrics(result: ClassifierResult) -> dict[str, float]:
    overall = {name: result.metrics.overall[name] for name in METRICS}
    kinds = {f"{_RECALL}{kind.name}": kind.recall for kind in result.metrics.kinds}
    return {name: value for name, value in (overall | kinds).items() if value is not None}


def _shared_settings(settings: TrainSettings) -> dict[str, Any]:
    """Return the settings that all trainings share, with the names of the listed options."""
    several = _listed_options(settings)
    options = {name: value for name, value in settings.options.items() if name not in ("backbone", "head", *several)}
    return {
        **shared_settings(settings, _AXES),
        "options": options,
        "listed": sorted(several.keys() - {"backbone", "head"}),
    }


def _folder(settings: TrainSettings) -> Path:
    """Return the folder of an earlier call with the same name, or a new one."""
    folder = find_grid(settings, SCHEMA)
    if folder is None:
        folder = new_grid(settings, "classifiers", settings.category or "")
        _write(folder, settings, [])
    return folder


def _tabulate(rows: Sequence[ClassifierGridRow]) -> tuple[ClassifierGridLine, ...]:
    by_variant: dict[str, list[ClassifierGridRow]] = {}
    for row in rows:
        by_variant.setdefault(row.variant.name, []).append(row)
    return tuple(map(_line, by_variant.values()))


def _line(rows: Sequence[ClassifierGridRow]) -> ClassifierGridLine:
    successful = [row for row in rows if row.error is None]
    seconds = [row.train_seconds for row in successful if row.train_seconds is not None]
    return ClassifierGridLine(
        rows[0].variant,
        seeds=len(successful),
        failed=len(rows) - len(successful),
        metrics=mean_stds(row.metrics for row in successful),
        train_seconds=mean_std(seconds) if seconds else None,
    )


def _varied(rows: Sequence[ClassifierGridRow]) -> tuple[str, ...]:
    names = dict.fromkeys(name for row in rows for name in row.variant.settings)
    return tuple(name for name in names if len({row.variant.settings.get(name) for row in rows}) > 1)


def _described(result: ClassifierGridResult) -> tuple[str, ...]:
    """Return the settings that name a line: those that vary, or the head."""
    return result.varied or ("head",)


def _description(result: ClassifierGridResult, line: ClassifierGridLine) -> tuple[str, ...]:
    return tuple(str(line.variant.settings.get(name, "")) for name in _described(result))


def _recall_names(rows: Sequence[ClassifierGridRow]) -> list[str]:
    return sorted({name for row in rows for name in row.metrics if name.startswith(_RECALL)})


def _write(folder: Path, settings: TrainSettings, rows: Sequence[ClassifierGridRow]) -> ClassifierGridResult:
    result = ClassifierGridResult(folder, _varied(rows), tuple(rows), _tabulate(rows))
    options = list(dict.fromkeys(name for row in rows for name in row.variant.options))
    columns = ("backbone", "head", "balance", *options, "seed", *METRICS, *_COLUMNS, *_recall_names(rows))
    lines = ({**asdict(row), **row.variant.settings, **row.metrics} for row in rows)
    summary = {
        "schema": SCHEMA,
        "settings": _shared_settings(settings),
        "combinations": [asdict(row) for row in rows],
        "table": [asdict(line) for line in result.table],
    }
    write_grid(folder, columns, lines, markdown(result), summary)
    return result


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(printable(cell).replace('|', chr(92) + '|') for cell in cells)} |"
