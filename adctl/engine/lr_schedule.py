"""Learning-rate schedules, as a factor of the peak learning rate for each step. Numbers only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

SCHEDULES = ("cosine", "step", "plateau", "constant")

_STEP_EVERY = 1 / 3
_STEP_FACTOR = 0.1
_PLATEAU_EPOCHS = 5
_PLATEAU_FACTOR = 0.5


@dataclass
class LearningRateSchedule:
    """Factor of the peak learning rate, after a linear warm-up.

    `cosine` falls to zero along half a cosine (Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5 without restarts);
    `step` divides by ten after each third of the training; `plateau` halves after five epochs without a lower
    monitored loss; `constant` stays at the peak.

    Attributes:
        name: A name from `SCHEDULES`.
        steps: Steps of the whole training.
        warmup: Fraction of the steps used for the warm-up.
        best: Lowest monitored loss; used by `plateau`, as are the following.
        stale: Epochs since the lowest loss or the last reduction.
        reduced: Current factor.
    """

    name: str
    steps: int = 0
    warmup: float = 0.05
    best: float = math.inf
    stale: int = 0
    reduced: float = 1.0

    def factor(self, step: int) -> float:
        """Return the factor of a step, counted from 0."""
        warm = max(1, round(self.steps * self.warmup)) if self.warmup else 0
        if step < warm:
            return (step + 1) / warm
        done = min(1.0, (step - warm) / max(1, self.steps - warm))
        if self.name == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        if self.name == "step":
            # The small addend keeps exactly one third from being rounded down.
            return _STEP_FACTOR ** int(done / _STEP_EVERY + 1e-9)
        return self.reduced

    def epoch_done(self, loss: float) -> None:
        """Update `plateau` with the monitored loss of an epoch; the other schedules ignore it."""
        if self.name != "plateau":
            return
        self.stale = 0 if loss < self.best else self.stale + 1
        self.best = min(self.best, loss)
        if self.stale >= _PLATEAU_EPOCHS:
            self.reduced *= _PLATEAU_FACTOR
            self.stale = 0

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint; JSON-safe."""
        return {"best": self.best, "stale": self.stale, "reduced": self.reduced}

    def restore(self, state: dict[str, Any]) -> None:
        """Take the state from a checkpoint."""
        self.best, self.stale, self.reduced = state["best"], state["stale"], state["reduced"]
