"""Which arithmetic gradient steps use, and why."""

from __future__ import annotations

import torch

_FABRIC_NAMES = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


def choose_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """Fabric's name of the arithmetic for gradient steps, and why.

    Args:
        wanted: `auto`, `32`, `16` or `bf16`.
        device: Where the steps are computed.
    """
    if wanted != "auto":
        return _FABRIC_NAMES[wanted], "asked for by --precision"
    if device.type != "cuda":
        return "32-true", f"half precision gains nothing sure on {device.type}"
    if torch.cuda.is_bf16_supported():
        return "bf16-mixed", "this GPU has bfloat16, which needs no loss scaling"
    return "16-mixed", "this GPU has no bfloat16"
