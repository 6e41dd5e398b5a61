"""Routes of the threshold of a served model: look, try another one, apply it, take it back."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from adctl.records import Calibration
from adctl.serve.answers import Name, VerdictAnswer, problems
from adctl.serve.history import Filters
from adctl.serve.problems import ProblemError
from adctl.serve.score_routes import model_of
from adctl.serve.security import MayChange, MayReview, Running
from adctl.serve.served_models import ServedModel, promise
from adctl.serve.state import Server
from adctl.serve.threshold_choice import Choice, by_rate, by_value, changed_verdicts, histogram, previous

_RECENT = 500
_SHOWN = 50
_LARGEST = 1e100
"""Largest threshold: a histogram that shows it has finite edges."""

router = APIRouter(prefix="/v1/models/{name}/threshold", tags=["threshold"])
"""Routes of thresholds."""


class ThresholdInfo(BaseModel):
    """Threshold of a model, and what is known of its false alarms.

    Attributes:
        model: Name of the model.
        threshold: Threshold in score units.
        warn_threshold: Threshold of warnings, or null.
        promise: The rates in one sentence.
        promised_false_alarm: Guaranteed share of false alarms; null if none is guaranteed.
        expected_false_alarm: Expected share.
        false_alarm_interval: Interval that holds the share with probability 0.9, or null.
        good_images: Number of good images of the calibration.
        good_above: Number of them above the threshold.
        notes: Remarks.
        recent: Number of recent verdicts of this model file.
    """

    model: str
    threshold: float
    warn_threshold: float | None
    promise: str
    promised_false_alarm: float | None
    expected_false_alarm: float
    false_alarm_interval: tuple[float, float] | None
    good_images: int
    good_above: int
    notes: list[str]
    recent: int


class Histogram(BaseModel):
    """Counts of scores in equal bins, whose edges are one more."""

    edges: list[float]
    calibration: list[int]
    recent: list[int]


class PresentThreshold(ThresholdInfo):
    """Threshold in use.

    Attributes:
        own: Threshold of the model file.
        undo: Whether there is an earlier threshold to return to.
        histogram: Scores of the calibration and of recent parts.
    """

    own: float
    undo: bool
    histogram: Histogram


class ChangedVerdict(VerdictAnswer):
    """Verdict that another threshold changes."""

    was: str
    becomes: str


class ChosenThreshold(ThresholdInfo):
    """Threshold that was asked for.

    Attributes:
        applied: Whether it is in use now.
        changed_count: Number of recent verdicts that it changes.
        changed: The newest of them.
    """

    applied: bool
    changed_count: int
    changed: list[ChangedVerdict]


class ThresholdChange(BaseModel):
    """Another threshold: a value, the largest share of false alarms, or the one before.

    Attributes:
        threshold: Threshold in score units.
        max_false_alarm: Largest share of false alarms, up to 0.5.
        undo: Whether to return to the threshold before.
        preview: Whether only to tell what would change.
    """

    model_config = ConfigDict(extra="forbid")

    threshold: Annotated[FiniteFloat, Field(ge=-_LARGEST, le=_LARGEST)] | None = None
    max_false_alarm: Annotated[FiniteFloat, Field(ge=1e-6, le=0.5)] | None = None
    undo: bool = False
    preview: bool = False

    @model_validator(mode="after")
    def _one_wish(self) -> ThresholdChange:
        if (self.threshold is not None) + (self.max_false_alarm is not None) + self.undo != 1:
            raise ValueError("give threshold, max_false_alarm or undo, and only one of them")
        return self


@router.get("", summary="Show the threshold", response_model=PresentThreshold, responses=problems(404, 409, 422, 503))
def read_threshold(name: Name, server: Running, caller: MayReview) -> dict[str, Any]:
    """Return the threshold with its promise, and the scores of the calibration and of recent parts as a histogram."""
    del caller
    model = _calibrated(server, name)
    assert model.calibration is not None
    recent = [row["score"] for row in _recent(server, model)]
    return {
        "model": name,
        **_described(_present(model), model),
        "own": model.calibration.threshold if model.trained is None else model.trained.threshold,
        "undo": bool(_earlier(server, model)),
        "recent": len(recent),
        "histogram": histogram(model.calibration, recent),
    }


@router.post(
    "", summary="Try or set a threshold", response_model=ChosenThreshold, responses=problems(400, 404, 409, 422, 503)
)
def change_threshold(
    name: Name, change: Annotated[ThresholdChange, Body()], server: Running, caller: MayChange
) -> dict[str, Any]:
    """Tell which recent verdicts another threshold would change, and apply it unless `preview` is set."""
    model = _calibrated(server, name)
    chosen, threshold = _choose(server, model, change)
    present = _present(model)
    rows = _recent(server, model)
    changed = changed_verdicts(rows, present.calibration, chosen.calibration)
    if not change.preview:
        server.history.note(
            caller.name, "threshold", name, before=present.calibration.threshold, after=chosen.calibration.threshold
        )
        server.models.set_threshold(name, threshold, caller.name)
    return {
        "model": name,
        **_described(chosen, model),
        "applied": not change.preview,
        "recent": len(rows),
        "changed_count": len(changed),
        "changed": changed[:_SHOWN],
    }


def _calibrated(server: Server, name: str) -> ServedModel:
    model = model_of(server, name)
    if model.trained is None or not model.trained.evidence.good:
        raise ProblemError(409, f"The model '{name}' has no calibration scores.", "Calibrate it: adctl calibrate")
    return model


def _present(model: ServedModel) -> Choice:
    assert model.trained is not None
    threshold = model.version.threshold
    return Choice(model.trained) if threshold is None else by_value(model.trained, threshold)


def _choose(server: Server, model: ServedModel, change: ThresholdChange) -> tuple[Choice, float | None]:
    """Return the wanted threshold, and its value to store: None for that of the calibration."""
    assert model.trained is not None
    if change.undo:
        earlier = _earlier(server, model)
        if not earlier:
            raise ProblemError(409, "There is no earlier threshold.", "Set one.")
        value = earlier[0]
        return (Choice(model.trained), None) if value is None else (by_value(model.trained, value), value)
    if change.threshold is not None:
        chosen = by_value(model.trained, change.threshold)
    else:
        assert change.max_false_alarm is not None
        chosen = by_rate(model.trained, change.max_false_alarm)
    value = chosen.calibration.threshold
    return chosen, None if value == model.trained.threshold else value


def _earlier(server: Server, model: ServedModel) -> list[float | None]:
    """Return the thresholds to which the present version can go back, the last one first."""
    rows = server.history.served(model.name)
    present = [row["threshold"] for row in rows if row["model_sha256"] == model.version.model_digest]
    return previous([None, *reversed(present)])


def _recent(server: Server, model: ServedModel) -> list[dict[str, Any]]:
    """Return the newest verdicts of the present model file that have a score, the newest first."""
    rows, _ = server.history.find(Filters(model=model.name), None, _RECENT)
    digest = model.version.model_digest
    return [row for row in rows if row["score"] is not None and row["model_sha256"] == digest]


def _described(choice: Choice, model: ServedModel) -> dict[str, Any]:
    """Return a threshold with what is known of its false alarms."""
    calibration: Calibration = choice.calibration
    good = calibration.evidence.good
    by_hand = model.trained is not None and calibration.threshold != model.trained.threshold
    in_words = promise(calibration)
    if by_hand and calibration.promised_false_alarm is None:
        in_words = promise(model.trained, calibration.threshold)
    return {
        "threshold": calibration.threshold,
        "warn_threshold": calibration.warn_threshold,
        "promise": in_words,
        "promised_false_alarm": calibration.promised_false_alarm,
        "expected_false_alarm": calibration.expected_false_alarm,
        "false_alarm_interval": calibration.false_alarm_interval,
        "good_images": len(good),
        "good_above": sum(score > calibration.threshold for score in good),
        "notes": choice.notes,
    }
