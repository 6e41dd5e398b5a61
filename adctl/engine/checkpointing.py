"""State of a gradient loop: everything that changes while it runs, its checkpoints, and when they are written."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from adctl.engine.checkpoints import Snapshot, load_weights
from adctl.engine.history import Epoch

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor, nn

    from adctl.engine.batching import BatchLimit
    from adctl.engine.context import FitContext
    from adctl.engine.ema import ExponentialMovingAverage
    from adctl.engine.history import FitReport, FitSettings
    from adctl.engine.lr_schedule import LearningRateSchedule

log = logging.getLogger(__name__)


@dataclass
class Position:
    """Progress of a phase; JSON-safe, stored in checkpoints.

    Attributes:
        epoch: Number of the current epoch, from 1.
        done: Completed steps of the current epoch.
        step: Completed steps in total.
        sums: Sum of each loss term over the images of the current epoch so far, on this process.
        seconds: Time spent on the current epoch before the last resume.
        best: Lowest monitored loss.
        best_epoch: Epoch with that loss; 0 before the first epoch has ended.
        stale: Epochs since then.
    """

    epoch: int = 1
    done: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    best: float = math.inf
    best_epoch: int = 0
    stale: int = 0

    def next_epoch(self) -> None:
        """Advance to the start of the next epoch."""
        self.epoch, self.done, self.sums, self.seconds = self.epoch + 1, 0, {}, 0.0


@dataclass
class LoopState:
    """Everything that changes while a gradient loop runs.

    Attributes:
        detector: The detector, on the device.
        objective: Loss module that exists during training only, or None.
        optimizers: Fabric's optimizers by name: `optimizer`, and `critic` if the phase has one.
        scaler: Loss scaler of float16 training, or None.
        average: Moving average of the weights, or None.
        schedule: Learning-rate schedule.
        limit: Largest batch that fits into memory.
        global_batch_size: Images of one step, on all processes together.
        position: Progress.
        best: Detector weights of the best epoch; empty before the first epoch has ended.
        report: Report of the fit, with the history.
    """

    detector: nn.Module
    objective: nn.Module | None
    optimizers: dict[str, Any]
    scaler: Any
    average: ExponentialMovingAverage | None
    schedule: LearningRateSchedule
    limit: BatchLimit
    global_batch_size: int
    report: FitReport
    position: Position = field(default_factory=Position)
    best: dict[str, Tensor] = field(default_factory=dict)

    def snapshot(self, phase: int) -> Snapshot:
        """Return the state as a snapshot.

        Args:
            phase: Number of the phase among the detector's phases.
        """
        snapshot = Snapshot(
            values={
                "phase": phase,
                "position": asdict(self.position),
                "history": [asdict(epoch) for epoch in self.report.history],
                "schedule": self.schedule.state(),
                "batch_size": self.limit.size,
                "group": self.global_batch_size,
                "scaler": self.scaler.state_dict() if self.scaler is not None else None,
                "averaged": int(self.average.n_averaged) - 1 if self.average else 0,
            }
        )
        snapshot.put_tensors("weights", self.detector.state_dict())
        snapshot.put_tensors("best", self.best)
        if self.objective is not None:
            snapshot.put_tensors("objective", self.objective.state_dict())
        if self.average is not None:
            snapshot.put_tensors("average", {str(n): value for n, value in enumerate(self.average.parameters())})
        for name, optimizer in self.optimizers.items():
            snapshot.put_optimizer(name, optimizer.optimizer)
        return snapshot

    def restore(self, snapshot: Snapshot) -> None:
        """Take the state from a snapshot.

        Raises:
            ModelFileError: The snapshot belongs to another network.
        """
        values = snapshot.values
        load_weights(self.detector, snapshot.get_tensors("weights"))
        if self.objective is not None:
            load_weights(self.objective, snapshot.get_tensors("objective"))
        weights = self.detector.state_dict()
        self.best = {name: value.to(weights[name].device) for name, value in snapshot.get_tensors("best").items()}
        if self.average is not None:
            averages = snapshot.get_tensors("average")
            self.average.restore([averages[str(n)] for n in range(len(averages))], values["averaged"])
        for name, optimizer in self.optimizers.items():
            snapshot.get_optimizer(name, optimizer.optimizer)
        if self.scaler is not None and values["scaler"]:
            self.scaler.load_state_dict(values["scaler"])
        self.schedule.restore(values["schedule"])
        self.position = Position(**values["position"])
        self.report.history[:] = [Epoch(**epoch) for epoch in values["history"]]
        self.report.resumed_at = self.position.step
        self.limit.size = min(self.limit.size, values["batch_size"])
        self.global_batch_size = values["group"]
        log.info("Resuming at epoch %d, step %d.", self.position.epoch, self.position.step + 1)


class Checkpointer:
    """Writes the checkpoints of one phase, from the first process only.

    Args:
        state: The state to write.
        phase: Number of the phase among the detector's phases.
        settings: The settings, with the intervals between checkpoints.
        context: The context, with the folder of the checkpoints.
        fabric: The processes.
    """

    def __init__(
        self, state: LoopState, phase: int, settings: FitSettings, context: FitContext, fabric: Fabric
    ) -> None:
        self.state, self.phase, self.settings = state, phase, settings
        self.folder = context.checkpoints if fabric.is_global_zero else None
        self._written = time.monotonic()

    def epoch_done(self, number: int) -> None:
        """Write a checkpoint if one is due after this epoch."""
        if number % self.settings.checkpoint_epochs == 0:
            self._write()

    def step_done(self, epoch_start: float) -> None:
        """Write a checkpoint if the last one is too old.

        Args:
            epoch_start: Time when this epoch started or was resumed, by `time.perf_counter`.
        """
        if time.monotonic() - self._written < 60 * self.settings.checkpoint_minutes:
            return
        position = self.state.position
        seconds = position.seconds
        position.seconds += time.perf_counter() - epoch_start
        self._write()
        position.seconds = seconds

    def _write(self) -> None:
        self._written = time.monotonic()
        if self.folder is not None:
            self.folder.write(self.state.position.step, self.state.snapshot(self.phase))
