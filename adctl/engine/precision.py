"""Precisions: of gradient steps, with the reason of the choice, and of inference on a GPU."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from adctl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_FABRIC_NAMES = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
_REDUCED = {"16": torch.float16, "bf16": torch.bfloat16}


def choose_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """Return Fabric's name of the precision of gradient steps, and the reason.

    Args:
        wanted: `auto`, `32`, `16` or `bf16`.
        device: Device of the gradient steps.
    """
    if wanted != "auto":
        return _FABRIC_NAMES[wanted], "requested by --precision"
    if device.type != "cuda":
        return "32-true", f"half precision is not reliably faster on {device.type}"
    if torch.cuda.is_bf16_supported():
        return "bf16-mixed", "this GPU supports bfloat16, which needs no loss scaling"
    return "16-mixed", "this GPU does not support bfloat16"


def reduced_type(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the type in which a network computes on a GPU: float16, bfloat16, or None for single precision.

    Args:
        precision: `32`, `tf32`, `bf16` or `16`.
        device: The device.

    Raises:
        UsageError: The device computes in single precision only.
    """
    if precision == "32":
        return None
    if device.type != "cuda":
        raise UsageError(
            f"Precision {precision} is for CUDA GPUs, and the device is '{device}'.",
            "Leave out --precision; to use half precision elsewhere, export the model with --half.",
        )
    if precision != "16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UsageError(
            f"{torch.cuda.get_device_name(device)} has no fast {precision}.", "Use --precision 16, or leave it out."
        )
    return _REDUCED.get(precision)


@contextmanager
def single_precision(*, tf32: bool) -> Iterator[None]:
    """Compute products in single precision inside the block: exactly, or with factors rounded to 10 bits (TF32).

    By default PyTorch rounds the factors of convolutions, but not those of matrix products. The setting belongs to the
    process, so only one thread at a time may be inside such a block.
    """
    kinds: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "tf32" if tf32 else "ieee"
        yield
    finally:
        for kind, value in zip(kinds, before, strict=True):
            kind.fp32_precision = value
