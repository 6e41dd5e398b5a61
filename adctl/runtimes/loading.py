"""Open a model file with a runtime."""

from __future__ import annotations

import logging
import pkgutil
from typing import TYPE_CHECKING

from adctl.choices import RUNTIMES
from adctl.errors import UsageError, unknown_name
from adctl.model_file import ModelHeader, is_no_detector, read_header
from adctl.runtimes.auto_select import choose_runtime, find_export, verify_export

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.runtimes.base import Runtime

log = logging.getLogger(__name__)

AUTO = "auto"


def open_runtime(
    path: Path, device: str = "auto", gpu: int | None = None, runtime: str | None = None, precision: str = "32"
) -> Runtime:
    """Open a model file.

    Args:
        path: `model.safetensors` or an exported file.
        device: `auto`, `cpu`, `cuda` or `mps`.
        gpu: Number of a CUDA GPU.
        runtime: A name from `RUNTIMES`; None selects by the file's suffix; `auto` selects the fastest verified one. For
            a `model.safetensors` and another runtime, the file exported from it is opened, with the calibration of
            `path`.
        precision: Precision of PyTorch on a CUDA GPU: `32`, `tf32`, `bf16` or `16`.

    Raises:
        UsageError: The suffix, the runtime or the device is unknown, the device does not have the precision, or there
            is no such exported file.
        ModelFileError: The file is damaged, not written by adctl or too new.
        MissingExtraError: The runtime is not installed.
    """
    default = _default_runtime(path)
    if default != "torch":
        verify_export(path)
    if runtime in (None, default):
        return _open(default, path, device, gpu, precision)
    if runtime != AUTO and runtime not in RUNTIMES:
        raise unknown_name("runtime", str(runtime), [AUTO, *RUNTIMES])
    if default != "torch":
        if runtime == AUTO:
            return _open(default, path, device, gpu, precision)
        raise UsageError(
            f"{path} is a file for the runtime '{default}', not for '{runtime}'.",
            f"Omit --runtime, or give the model.safetensors or a file that ends in {RUNTIMES[str(runtime)].suffix}.",
        )
    return _open_model(path, device, gpu, str(runtime), precision)


def _open_model(path: Path, device: str, gpu: int | None, runtime: str, precision: str) -> Runtime:
    """Open a `model.safetensors` with another runtime than the default, or with the fastest one."""
    if runtime == AUTO:
        choice = choose_runtime(path, device, gpu)  # compares the checksum
        log.debug("Runtime %s: %s.", choice.runtime, choice.reason)
        name, target = choice.runtime, choice.path
    elif RUNTIMES[runtime].suffix == path.suffix:
        name, target = runtime, path
    else:
        name, target = runtime, find_export(path, runtime)
        verify_export(target)
    opened = _open(name, target, device, gpu, precision)
    opened.header = read_header(path)
    return opened


def _open(name: str, path: Path, device: str, gpu: int | None, precision: str) -> Runtime:
    of_torch = RUNTIMES[name].package == "torch" and RUNTIMES[name].suffix == ".safetensors"
    if precision != "32" and not of_torch:
        raise UsageError(
            f"The precision of a file for the runtime '{name}' was chosen when it was exported, so --precision "
            f"{precision} has no effect.",
            "Leave out --precision, or use --runtime torch.",
        )
    chosen = (precision,) if of_torch else ()
    runtime: Runtime = pkgutil.resolve_name(RUNTIMES[name].reader)(path, device, gpu, *chosen)
    if not isinstance(runtime.header, ModelHeader):
        raise is_no_detector(path)
    return runtime


def _default_runtime(path: Path) -> str:
    for name, spec in RUNTIMES.items():
        if spec.suffix == path.suffix:
            return name
    suffixes = sorted({spec.suffix for spec in RUNTIMES.values()})
    raise UsageError(f"{path} does not have the suffix of a model file.", f"Model files end in {', '.join(suffixes)}.")
