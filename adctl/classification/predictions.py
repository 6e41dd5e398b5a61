"""Predictions of a classifier for images, their metrics, and their files.

predictions.json    classes, decision, model and settings, and a row for each image
predictions.csv     the rows as a table
predictions.jsonl   while images are being named: the same head, then the rows; a killed process loses none of them
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numpy as np

from adctl import documents, files, reading
from adctl.classification.decision import UNKNOWN, Decision
from adctl.errors import DataError
from adctl.metrics.bootstrap import exact_interval
from adctl.metrics.classification import classification_metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    from adctl.classification.decision import Named
    from adctl.metrics.bootstrap import Interval
    from adctl.metrics.classification import ClassificationMetrics
    from adctl.records import Sample

PREDICTIONS, TABLE, JOURNAL = "predictions.json", "predictions.csv", "predictions.jsonl"
ERROR = "error"
"""Name of images that cannot be read, in counts."""

_SCHEMA: Final = "adctl.predictions/1"
_AGAIN = "Name the images again with 'adctl score'."


@dataclass(frozen=True)
class PredictedKind:
    """Prediction for one image.

    Attributes:
        path: The image file.
        key: Name of the image within its dataset or folder.
        label: Known kind, or None.
        name: Name of the kind, `unknown`, or None for an unreadable image.
        kind: Most probable kind, for unknown images too.
        probability: Calibrated probability of that kind, 0 to 1.
        set: Kinds of the conformal set.
        distance: Distance of the features to the nearest kind.
        probabilities: Calibrated probability of each kind.
        error: Reason why the image was not read, or None.
    """

    path: str
    key: str
    label: str | None
    name: str | None = None
    kind: str | None = None
    probability: float | None = None
    set: tuple[str, ...] = ()
    distance: float | None = None
    probabilities: tuple[float, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class UnknownShares:
    """Shares of images that were called unknown.

    Attributes:
        known: Share of the images of known kinds, 0 to 1.
        known_interval: Its exact interval, 95 %.
        unseen: Share of the images of each kind that training lacked, by its name.
        unseen_images: Number of these images, by the name of their kind.
        mean_set: Mean number of kinds in the conformal set of images of known kinds.
        coverage: Share of these images whose true kind is in the set, those called unknown left out; None if all are.
    """

    known: float
    known_interval: Interval
    unseen: dict[str, float]
    unseen_images: dict[str, int]
    mean_set: float
    coverage: float | None


@dataclass(frozen=True)
class PredictionSet:
    """Predictions of one classifier for many images.

    Attributes:
        classes: Names of the kinds.
        decision: Calibrated decision.
        rows: Prediction for each image.
        manifest: Model, settings, runtime and environment, JSON-safe.
    """

    classes: tuple[str, ...]
    decision: Decision
    rows: tuple[PredictedKind, ...]
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def readable(self) -> tuple[PredictedKind, ...]:
        """Rows of the images that were read."""
        return tuple(row for row in self.rows if row.error is None)

    @property
    def known(self) -> tuple[PredictedKind, ...]:
        """Rows of the images whose label is a kind of the training."""
        return tuple(row for row in self.readable if row.label in self.classes)

    def counts(self) -> dict[str, int]:
        """Return the number of images with each name: the kinds, `unknown` and `error`."""
        found = Counter(row.name or ERROR for row in self.rows)
        return {name: found[name] for name in (*self.classes, UNKNOWN, ERROR) if found[name]}

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return number of the true kind [N] and probabilities [N,K] of the images of known kinds."""
        rows = self.known
        labels = np.array([self.classes.index(str(row.label)) for row in rows], np.int64)
        return labels, np.array([row.probabilities for row in rows], np.float64).reshape(len(rows), len(self.classes))

    def metrics(self) -> ClassificationMetrics | None:
        """Compute the metrics on the images of known kinds; None if there are none."""
        labels, probabilities = self.arrays()
        return classification_metrics(labels, probabilities, self.classes) if len(labels) else None

    def unknown(self) -> UnknownShares | None:
        """Compute the shares called unknown; None without images of known kinds."""
        rows = self.known
        if not rows:
            return None
        missed = sum(row.name == UNKNOWN for row in rows)
        kept = [row.label in row.set for row in rows if row.name != UNKNOWN]
        unseen: dict[str, list[bool]] = {}
        for row in self.readable:
            if row.label is not None and row.label not in self.classes:
                unseen.setdefault(row.label, []).append(row.name == UNKNOWN)
        return UnknownShares(
            known=missed / len(rows),
            known_interval=exact_interval(missed, len(rows), 0.95),
            unseen={kind: float(np.mean(own)) for kind, own in sorted(unseen.items())},
            unseen_images={kind: len(own) for kind, own in sorted(unseen.items())},
            mean_set=float(np.mean([len(row.set) for row in rows])),
            coverage=float(np.mean(kept)) if kept else None,
        )

    def save(self, folder: Path) -> None:
        """Write table and document, each atomically, and remove the rows that were written meanwhile.

        Raises:
            OutputError: They cannot be written.
        """
        files.write_csv(folder / TABLE, self.table())
        files.write_json(folder / PREDICTIONS, {"schema": _SCHEMA, **asdict(self)})
        (folder / JOURNAL).unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path) -> PredictionSet:
        """Read the predictions of a folder; of images that are still being named, those that are.

        Raises:
            DataError: The file is missing or damaged.
        """
        path = folder / PREDICTIONS
        stored = documents.read(path, _Stored, _AGAIN)
        if stored is not None:
            found = cls(stored.classes, stored.decision, stored.rows, stored.manifest)
        else:
            path = folder / JOURNAL
            head, rows, _ = _read_journal(folder)
            if head is None or not rows:
                raise DataError(f"{folder} holds no {PREDICTIONS}.", _AGAIN)
            found = cls(head.classes, head.decision, rows, head.manifest)
        try:
            documents.convert(found.manifest, _Manifest, others="ignore")
            for row in found.rows:
                _check_row(row, found.classes)
        except ValueError as error:
            raise DataError(f"{path} is damaged: {error}.", _AGAIN) from error
        return found

    def table(self) -> Iterator[tuple[object, ...]]:
        """Yield the rows of `predictions.csv`, the names of the columns first."""
        columns = ("path", "key", "label", "name", "kind", "probability", "set", "distance", "error")
        yield (*columns, *(f"p({name})" for name in self.classes))
        for row in self.rows:
            members = "" if row.name is None else "|".join(row.set) or UNKNOWN
            yield (
                *(row.path, row.key, row.label, row.name, row.kind, _number(row.probability), members),
                *(_number(row.distance), row.error),
                *(map(_number, row.probabilities) if row.probabilities else ("",) * len(self.classes)),
            )


@dataclass(frozen=True)
class _Stored:
    schema: Literal["adctl.predictions/1"]
    classes: tuple[str, ...]
    decision: Decision
    rows: tuple[PredictedKind, ...]
    manifest: dict[str, Any]


@dataclass(frozen=True)
class _Manifest:
    """Entries of the manifest that are read again, with their types; other entries are shown as they are."""

    started: str | None = None
    model: dict[str, Any] | None = None
    dataset: dict[str, Any] | None = None
    runtime: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None
    environment: dict[str, Any] | None = None


def _check_row(row: PredictedKind, classes: tuple[str, ...]) -> None:
    """Check the relations between the fields of a row.

    Raises:
        ValueError: They contradict each other.
    """
    if row.error is not None:
        return
    if row.kind not in classes or row.name not in (*classes, UNKNOWN) or not set(row.set) <= set(classes):
        raise ValueError(f"the names of {row.key} are none of {', '.join(classes)}")
    if len(row.probabilities) != len(classes) or row.probability is None or row.distance is None:
        raise ValueError(f"{row.key} has {len(row.probabilities)} probabilities of {len(classes)} kinds")


@dataclass(frozen=True)
class _Head:
    schema: Literal["adctl.predictions/1"]
    job: str
    classes: tuple[str, ...]
    decision: Decision
    manifest: dict[str, Any]


class PredictionWriter:
    """Writer of predictions, row by row; the first row takes the place of what was in the folder.

    Args:
        folder: Existing folder.
        classes: Names of the kinds.
        decision: Calibrated decision.
        manifest: Model, settings, runtime and environment, JSON-safe. If its `job` equals that of rows which an
            interrupted process left in the folder, writing continues behind them.

    Attributes:
        rows: Rows in the folder.

    Raises:
        OutputError: The folder cannot be written.
    """

    def __init__(self, folder: Path, classes: Sequence[str], decision: Decision, manifest: dict[str, Any]) -> None:
        self.rows: list[PredictedKind] = []
        self._folder = folder
        self._head = _Head(_SCHEMA, manifest.get("job", ""), tuple(classes), decision, manifest)
        self._journal: files.AppendFile | None = None

    def __enter__(self) -> Self:
        head, rows, size = _read_journal(self._folder)
        if self._head.job and head is not None and head.job == self._head.job and rows:
            self.rows = list(rows)
            with files.output_errors(self._folder):
                self._journal = files.AppendFile(self._folder / JOURNAL, size)
        return self

    def add(self, rows: Iterable[PredictedKind]) -> None:
        """Write rows; a killed process does not lose them."""
        with files.output_errors(self._folder):
            if self._journal is None:
                self._begin()
            for row in rows:
                assert self._journal is not None
                self._journal.add(_line(asdict(row)))
                self.rows.append(row)

    def finish(self) -> PredictionSet:
        """Write the whole set, and return it.

        Raises:
            OutputError: It cannot be written; the rows are kept.
        """
        head = self._head
        predictions = PredictionSet(head.classes, head.decision, tuple(self.rows), head.manifest)
        predictions.save(self._folder)
        return predictions

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._journal is not None:
            self._journal.close()

    def _begin(self) -> None:
        """Remove an earlier set, and open the file."""
        head = _line(asdict(self._head))
        files.write_bytes(self._folder / JOURNAL, head)
        for name in (PREDICTIONS, TABLE):
            (self._folder / name).unlink(missing_ok=True)
        self._journal = files.AppendFile(self._folder / JOURNAL)


def is_predictions(folder: Path) -> bool:
    """Return whether a folder holds predictions, complete or not."""
    return (folder / PREDICTIONS).is_file() or (folder / JOURNAL).is_file()


def _read_journal(folder: Path) -> tuple[_Head | None, tuple[PredictedKind, ...], int]:
    """Return head and rows of images that were being named, and the number of bytes that these take."""
    try:
        first, _, rest = reading.read_bytes(folder / JOURNAL).partition(b"\n")
        head = documents.parse(first, _Head)
    except (OSError, ValueError):
        return None, (), 0
    lines = documents.leading_records(rest, PredictedKind)
    return head, tuple(row for row, _ in lines), len(first) + 1 + sum(size for _, size in lines)


def _line(values: dict[str, Any]) -> bytes:
    return (files.to_json(values) + "\n").encode()


def predicted_kinds(
    samples: Iterable[Sample], named: Named, distances: NDArray[np.float64], classes: Sequence[str]
) -> list[PredictedKind]:
    """Return the rows of images from their names and distances [N]."""
    names = named.names(classes)
    return [
        PredictedKind(
            path=str(sample.path),
            key=sample.key,
            label=sample.label,
            name=name,
            kind=classes[named.kinds[number]],
            probability=float(named.probabilities[number].max()),
            set=tuple(one for one, inside in zip(classes, named.sets[number], strict=True) if inside),
            distance=float(distances[number]),
            probabilities=tuple(named.probabilities[number].tolist()),
        )
        for number, (sample, name) in enumerate(zip(samples, names, strict=True))
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
