"""Precision of gradient steps, with the reason of its choice."""

from __future__ import annotations

import torch

_FABRIC_NAMES = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


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
