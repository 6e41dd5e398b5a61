"""Commissioning of a watched line: its first parts set the threshold, once, and a restart keeps it.

    commissioning.json      number of parts, share of defective ones, and the calibration that they gave

The first parts get no verdict: the threshold of the training may be wrong for this line, which is why it is set anew.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from adctl import documents, files, reading
from adctl.records import Calibration, CalibrationScores, ScoredImage
from adctl.scoring.score_set import JSONL
from adctl.thresholds.commissioning import commission
from adctl.thresholds.contaminated import SHARE
from adctl.thresholds.drift import input_ranges

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

COMMISSIONING = "commissioning.json"

_SCHEMA = "adctl.commissioning/1"
_REMEDY = "Delete it to commission the line anew, or choose another folder with --out."
_SHOWN_PARTS = 10


@dataclass(frozen=True)
class _Commissioned:
    """Document of a commissioned line."""

    schema: str
    parts: int
    contaminated: float
    calibration: Calibration


class Commissioning:
    """Collector of the first parts of a line, until there are enough to set the threshold.

    Args:
        folder: Folder of the results; parts that were scored there before count.
        parts: Number of parts wanted; None for a line that is not commissioned now.
        share: Largest share of defective parts, 0 to 1; None for the usual one.
        views: Views of test-time augmentation that give the scores.

    Attributes:
        calibration: Calibration of the line; None until the parts are enough.

    Raises:
        DataError: The file of an earlier commissioning is damaged.
    """

    def __init__(self, folder: Path, parts: int | None, share: float | None, views: tuple[str, ...]) -> None:
        self._path = folder / COMMISSIONING
        self._parts = parts or 0
        self._share = SHARE if share is None else share
        self._views = views
        stored = documents.read(self._path, _Commissioned, _REMEDY)
        self.calibration = stored.calibration if stored else None
        self._rows: list[tuple[str, float, float]] = []
        self._inputs: list[tuple[float, ...]] = []
        if stored is not None:
            log.info("The threshold is that of the %d first parts of this line: see %s.", stored.parts, self._path)
        elif self._parts:
            for line in reading.read_text(folder / JSONL).splitlines():
                self._keep(documents.parse(line, ScoredImage))

    @property
    def due(self) -> bool:
        """Whether enough parts are collected, and the threshold is not set yet."""
        return self.calibration is None and bool(self._parts) and not self.missing

    @property
    def missing(self) -> int:
        """Number of parts still to collect."""
        return 0 if self.calibration else max(0, self._parts - len(self._rows))

    def add(self, row: ScoredImage, inputs: tuple[float, ...]) -> None:
        """Add one part; an image that could not be read does not count."""
        self._keep(row)
        if inputs:
            self._inputs.append(inputs)

    def finish(self) -> Calibration:
        """Set the threshold from the collected parts, store it, and say so.

        Raises:
            DataError: The share of defective parts is too large for a threshold.
            OutputError: The file cannot be written.
        """
        collected = CalibrationScores(
            good=tuple(sorted(score for _, score, _ in self._rows)),
            peaks=tuple(sorted(peak for *_, peak in self._rows)),
            views=self._views,
            inputs=input_ranges(np.array(self._inputs)),
            contaminated=self._share,
        )
        self.calibration, notes = commission(collected)
        files.write_json(self._path, asdict(_Commissioned(_SCHEMA, len(self._rows), self._share, self.calibration)))
        log.info("%s", self._text(self.calibration))
        for note in notes:
            log.warning("%s", note)
        return self.calibration

    def _keep(self, row: ScoredImage) -> None:
        if self.missing and row.score is not None and row.peak is not None:
            self._rows.append((row.key, row.score, row.peak))

    def _text(self, calibration: Calibration) -> str:
        above = [key for key, score, _ in self._rows if score > calibration.threshold]
        more = f" and {len(above) - _SHOWN_PARTS} more" if len(above) > _SHOWN_PARTS else ""
        listed = f": {', '.join(above[:_SHOWN_PARTS])}{more}" if above else ""
        return (
            f"The first {len(self._rows)} parts set the threshold {calibration.threshold:.6g}, if at most "
            f"{100 * self._share:g} % of them are defective: about {100 * calibration.level:.3g} % false alarms, at "
            f"most {100 * (calibration.promised_false_alarm or 1):.3g} %. Parts above it, which got no verdict: "
            f"{len(above)}{listed}."
        )
