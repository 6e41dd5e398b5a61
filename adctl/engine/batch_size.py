"""Default batch sizes per device. Does not import torch."""

from __future__ import annotations

CPU_PIECE = 2
"""Images that pass through a network together on a CPU, so that activations between layers stay in the cache.

PyTorch with 8 images of 256 x 256 pixels took 1.9 times as long per image. In exported networks each core computes
such batches alone, which is faster than sharing each layer among the cores."""

_AUTO = {"cpu": 8, "mps": 16, "cuda": 32}


def starting_batch_size(wanted: int | str, device: str) -> int:
    """Return the batch size to start with: `wanted`, or the default of the device.

    Args:
        wanted: Number of images, `auto`, or `max`, which starts like `auto` and is raised on a GPU.
        device: Device as torch names it, such as `cpu` or `cuda:0`.
    """
    return _AUTO.get(device.partition(":")[0], 8) if isinstance(wanted, str) else wanted
