"""How many images go through at once where nobody said. Knows names of devices, and does not import torch."""

from __future__ import annotations

_AUTO = {"cpu": 8, "mps": 16, "cuda": 32}


def starting_batch_size(wanted: int | str, device: str) -> int:
    """The batch size to begin with: what was asked for, or what keeps the device's caches busy.

    Args:
        wanted: Images, or `auto`.
        device: As torch names it: `cpu`, `cuda:0`.
    """
    return _AUTO.get(device.partition(":")[0], 8) if wanted == "auto" else int(wanted)
