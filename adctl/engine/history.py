"""What is asked of a fit and what it did: plain records, JSON-safe."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class FitSettings:
    """How to fit.

    Attributes:
        epochs: Of each `Optimize` phase.
        least_steps: Optimizer steps of each, at least: small data sets get more epochs, and as much more patience.
        learning_rate: Peak of AdamW's.
        weight_decay: AdamW's.
        schedule: How the learning rate goes on after its warm-up, one of `schedule.SCHEDULES`.
        warmup: Share of the steps over which it rises.
        batch_size: Images at once on each device, or `auto`.
        accumulate: Batches to one optimizer step.
        patience: Epochs without a better validation loss before stopping.
        precision: `auto`, `32`, `16` or `bf16`.
        seed: Decides the order of the images and everything else random.
        clip: Largest norm of the gradient.
        ema: Share of the running average of weights that stays at each step; 0 keeps none.
        gradient_checkpointing: Compute activations again instead of keeping them.
        compile: Compile the loss with torch's compiler.
        checkpoint_epochs: Epochs between checkpoints.
        checkpoint_minutes: Minutes between checkpoints, within an epoch too.
    """

    epochs: int = 20
    least_steps: int = 0
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
    """One epoch.

    Attributes:
        number: From 1.
        loss: Mean over its images.
        terms: The same, by term; the critic's too, which are not part of `loss`.
        validation: Mean loss on held-out images, or None.
        learning_rate: At its end.
        seconds: It took, validation included.
        images_per_second: Trained on, all devices together.
        memory: Bytes the process held at its end; on a GPU, the most that was allocated.
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
    """What fitting did.

    Attributes:
        history: One entry an epoch; empty for methods without gradient steps.
        best_epoch: The epoch whose weights were kept, or None.
        stopped_early: Whether patience ran out.
        seconds: Of each phase, by its title; of all sittings together after a resume.
        precision: The arithmetic of gradient steps and why, or None.
        batch_size: Images at once on each device, after any fall-back.
        global_batch_size: Images to one optimizer step, all devices together; 0 without gradient steps.
        devices: How many computed.
        resumed_at: The step the last sitting went on from, or None.
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
        """JSON-safe."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> FitReport:
        """Rebuild from `to_dict`."""
        return cls(**{**value, "history": [Epoch(**epoch) for epoch in value["history"]]})


def to_csv(history: list[Epoch]) -> str:
    """One line an epoch, one column a loss term."""
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
