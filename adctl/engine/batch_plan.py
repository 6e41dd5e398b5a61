"""Division of training images into epochs, optimizer steps and processes. Knows numbers of images only."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from adctl.engine.history import FitSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepImages:
    """Images of one optimizer step.

    Attributes:
        total: Number of images on all processes together.
        indices: Indices of the images on this process.
    """

    total: int
    indices: list[int]


@dataclass(frozen=True)
class BatchPlan:
    """Division of each epoch into optimizer steps.

    Attributes:
        images: Number of training images.
        global_batch_size: Images of one step, on all processes together.
        seed: Seed of the order of the images.
        rank: Number of this process, from 0.
        processes: Number of processes.
    """

    images: int
    global_batch_size: int
    seed: int
    rank: int = 0
    processes: int = 1

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return len(self._bounds())

    @property
    def images_per_epoch(self) -> int:
        """Images of an epoch; fewer than all if the last step is left out."""
        return self._bounds()[-1][1]

    def epoch(self, number: int) -> list[StepImages]:
        """Return the images of each step of an epoch, in a random order that depends on the seed and the epoch."""
        order = np.random.default_rng((self.seed, number)).permutation(self.images)
        return [
            StepImages(stop - start, order[start:stop][self.rank :: self.processes].tolist())
            for start, stop in self._bounds()
        ]

    def _bounds(self) -> list[tuple[int, int]]:
        size = self.global_batch_size
        bounds = [(start, min(start + size, self.images)) for start in range(0, self.images, size)]
        # A single image has no batch statistics. Each epoch has another order, so each leaves out another image.
        if len(bounds) > 1 and bounds[-1][1] - bounds[-1][0] < 2 * self.processes:
            bounds.pop()
        return bounds


def training_length(settings: FitSettings, steps: int) -> tuple[int, int]:
    """Return the number of epochs and the patience, both raised if the settings' epochs have too few steps.

    Args:
        settings: The settings, with `epochs`, `patience` and `min_steps`.
        steps: Optimizer steps of an epoch.
    """
    epochs = max(settings.epochs, math.ceil(settings.min_steps / steps))
    if epochs > settings.epochs:
        log.info("%d epochs, because an epoch has only %d steps: %d steps in total.", epochs, steps, epochs * steps)
    return epochs, math.ceil(settings.patience * epochs / settings.epochs)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of the random numbers of one step on one process."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])
