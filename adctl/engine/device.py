"""Choice of the device, with its reason. Knows devices only."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from adctl.errors import UsageError


@dataclass(frozen=True)
class DeviceChoice:
    """Device with the reason of its choice.

    Attributes:
        device: The device.
        reason: Reason, for the log and the run's manifest.
    """

    device: torch.device
    reason: str


def choose_device(wanted: str = "auto", gpu: int | None = None) -> DeviceChoice:
    """Choose a device.

    Args:
        wanted: `auto`, `cpu`, `cuda` or `mps`; `auto` takes the first GPU, or the CPU if there is none.
        gpu: Number of a CUDA GPU, which implies `cuda`, or None.

    Raises:
        UsageError: The device does not exist; the message lists the devices of this machine.
    """
    if gpu is not None:
        if wanted not in ("auto", "cuda"):
            raise UsageError(f"--gpu {gpu} and --device {wanted} contradict each other.", "Give only one of the two.")
        return _cuda(gpu, f"requested by --gpu {gpu}")
    return _best() if wanted == "auto" else _named(wanted)


def _named(wanted: str) -> DeviceChoice:
    reason = f"requested by --device {wanted}"
    if wanted == "cuda":
        return _cuda(0, reason)
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise _absent("mps")
    return DeviceChoice(torch.device(wanted), reason)


def _best() -> DeviceChoice:
    if torch.cuda.is_available():
        return _cuda(0, "the first CUDA GPU")
    if torch.backends.mps.is_available():
        return DeviceChoice(torch.device("mps"), "an Apple GPU, and no CUDA GPU")
    threads = torch.get_num_threads()
    return DeviceChoice(torch.device("cpu"), f"no GPU found; {threads} thread{'' if threads == 1 else 's'}")


def available_devices() -> list[str]:
    """Return the options that select each device of this machine."""
    names = ["--device cpu"]
    if torch.backends.mps.is_available():
        names.append("--device mps")
    names.extend(f"--gpu {index} ({torch.cuda.get_device_name(index)})" for index in range(torch.cuda.device_count()))
    return names


def _cuda(index: int, reason: str) -> DeviceChoice:
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise _absent(f"cuda:{index}")
    return DeviceChoice(torch.device("cuda", index), f"{reason} ({torch.cuda.get_device_name(index)})")


def _absent(name: str) -> UsageError:
    return UsageError(
        f"This machine has no device '{name}'.",
        f"Choose one of {', '.join(available_devices())}, or leave the flag out.",
    )
