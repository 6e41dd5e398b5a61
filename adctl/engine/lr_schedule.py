"""The learning rate over a training: what share of its peak each step takes. Numbers only."""

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
class Schedule:
    """Share of the peak learning rate, after a linear warm-up.

    `cosine` falls to nothing along half a cosine (Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5 without
    restarts); `step` divides by ten after each third; `plateau` halves after five epochs whose watched loss was
    no better; `constant` stays.

    Args:
        name: One of `SCHEDULES`.
        steps: Of the whole training.
        warmup: Share of the steps that the warm-up takes.
    """

    name: str
    steps: int
    warmup: float = 0.05
    best: float = math.inf
    stale: int = 0
    reduced: float = 1.0

    def factor(self, step: int) -> float:
        """Share of the peak for a step, counted from 0."""
        warm = max(1, round(self.steps * self.warmup)) if self.warmup else 0
        if step < warm:
            return (step + 1) / warm
        done = min(1.0, (step - warm) / max(1, self.steps - warm))
        if self.name == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        if self.name == "step":
            # The nudge keeps a third of the way from being rounded down.
            return _STEP_FACTOR ** int(done / _STEP_EVERY + 1e-9)
        return self.reduced

    def epoch_done(self, watched: float) -> None:
        """Take note of an epoch's loss; matters to `plateau` alone."""
        if self.name != "plateau":
            return
        self.stale = 0 if watched < self.best else self.stale + 1
        self.best = min(self.best, watched)
        if self.stale >= _PLATEAU_EPOCHS:
            self.reduced *= _PLATEAU_FACTOR
            self.stale = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; JSON-safe."""
        return {"best": self.best, "stale": self.stale, "reduced": self.reduced}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.best, self.stale, self.reduced = state["best"], state["stale"], state["reduced"]
