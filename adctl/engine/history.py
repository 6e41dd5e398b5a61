"""Settings, epochs and report of a fit: plain records, JSON-safe."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class FitSettings:
    """Settings of a fit.

    Attributes:
        epochs: Epochs of each `Optimize` phase.
        min_steps: Minimum optimizer steps of each; with fewer, epochs and patience are increased in proportion.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        schedule: Learning-rate schedule after the warm-up, a name from `lr_schedule.SCHEDULES`.
        warmup: Fraction of the steps used for the warm-up of the learning rate.
        batch_size: Images per batch on each device, or `auto`.
        accumulate: Batches per optimizer step.
        patience: Epochs without a lower validation loss before training stops.
        precision: `auto`, `32`, `16` or `bf16`.
        seed: Seed of all random numbers, the order of the images included.
        clip: Maximum norm of the gradient.
        ema: Decay of the exponential moving average of the weights; 0 for none.
        gradient_checkpointing: Whether to recompute activations instead of storing them.
        compile: Whether to compile the loss with torch.compile.
        checkpoint_epochs: Epochs between checkpoints.
        checkpoint_minutes: Minutes between checkpoints, also within an epoch.
    """

    epochs: int = 20
    min_steps: int = 0
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    warmup: float = 0.05
    batch_size: int | str = "auto"
    accumulate: int = 1
    patience: int = 20
    precision: str = "auto"
    seed: int = 0
    clip: float = 1.0
    ema: float = 0.0
    gradient_checkpointing: bool = False
    compile: bool = False
    checkpoint_epochs: int = 10
    checkpoint_minutes: float = 5.0


@dataclass(frozen=True)
class Epoch:
    """Record of one epoch.

    Attributes:
        number: Number of the epoch, from 1.
        loss: Mean training loss per image.
        terms: Mean of each loss term; includes the terms of the critic, which are not part of `loss`.
        validation: Mean loss on the held-out images, or None.
        learning_rate: Learning rate at the end of the epoch.
        seconds: Duration, validation included.
        images_per_second: Training speed, all devices together.
        memory: Bytes held by the process at the end; on a GPU, the peak of allocated bytes.
    """

    number: int
    loss: float
    terms: dict[str, float]
    validation: float | None
    learning_rate: float
    seconds: float
    images_per_second: float = 0.0
    memory: int = 0


@dataclass
class FitReport:
    """Report of a fit.

    Attributes:
        history: One entry per epoch; empty for methods without gradient steps.
        best_epoch: Epoch whose weights were kept, or None.
        stopped_early: Whether training stopped because of `patience`.
        seconds: Duration of each phase, by its title.
        precision: Precision of the gradient steps with the reason, or None.
        batch_size: Images per batch on each device, after any reduction for memory.
        global_batch_size: Images per optimizer step, all devices together; 0 without gradient steps.
        devices: Number of devices.
        resumed_at: Step from which training was resumed, or None.
    """

    history: list[Epoch] = field(default_factory=list)
    best_epoch: int | None = None
    stopped_early: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    precision: str | None = None
    batch_size: int = 0
    global_batch_size: int = 0
    devices: int = 1
    resumed_at: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-safe dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> FitReport:
        """Return the report of a dictionary from `to_dict`."""
        return cls(**{**value, "history": [Epoch(**epoch) for epoch in value["history"]]})


def to_csv(history: list[Epoch]) -> str:
    """Return the history as CSV: one line per epoch, one column per loss term."""
    out = io.StringIO()
    terms = sorted({name for epoch in history for name in epoch.terms})
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["epoch", "loss", *terms, "validation", "learning_rate", "seconds", "images_per_second", "memory_bytes"]
    )
    for epoch in history:
        values = [epoch.terms.get(name) for name in terms]
        rest = (epoch.validation, epoch.learning_rate, epoch.seconds, epoch.images_per_second, epoch.memory)
        writer.writerow([epoch.number, epoch.loss, *values, *rest])
    return out.getvalue()
