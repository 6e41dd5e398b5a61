"""How many images go through at once where nobody said. Knows names of devices, and does not import torch."""

from __future__ import annotations

CPU_PIECE = 2
"""Images of a batch that go through a network together on a CPU: what is between its layers then stays in cache. In
PyTorch 8 at 256 x 256 took 1.9 times as long an image; of an exported network each core takes pieces whole, which beats
sharing every layer out among the cores."""

_AUTO = {"cpu": 8, "mps": 16, "cuda": 32}


def starting_batch_size(wanted: int | str, device: str) -> int:
    """The batch size to begin with: what was asked for, or what keeps the device's caches busy.

    Args:
        wanted: Images, or `auto`.
        device: As torch names it: `cpu`, `cuda:0`.
    """
    return _AUTO.get(device.partition(":")[0], 8) if wanted == "auto" else int(wanted)
