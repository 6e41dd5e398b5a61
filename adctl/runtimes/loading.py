"""Opening a model file with a runtime."""

from __future__ import annotations

import logging
import pkgutil
from typing import TYPE_CHECKING

from adctl.choices import RUNTIMES
from adctl.errors import UsageError, unknown_name
from adctl.model_file import read_header
from adctl.runtimes.auto_select import choose, exported_for

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.runtimes.base import Runtime

log = logging.getLogger(__name__)

AUTO = "auto"


def open_runtime(path: Path, device: str = "auto", gpu: int | None = None, runtime: str | None = None) -> Runtime:
    """Open a model file.

    Args:
        path: `model.safetensors` or an exported file.
        device: `auto`, `cpu`, `cuda` or `mps`.
        gpu: Number of a CUDA GPU.
        runtime: A name from `RUNTIMES`; None for the one that the file's ending asks for; `auto` for the fastest that
            is proved to score a `model.safetensors` as torch does. Beside a model file the exported one is taken
            that was made from the very same tensors; the calibration is always that of `path`.

    Raises:
        UsageError: The ending, the runtime or the device is unknown, or there is no such exported file.
        ModelFileError: The file is damaged, foreign or too new.
        MissingExtraError: The runtime is not installed.
    """
    own = _own_runtime(path)
    if runtime in (None, own):
        return _opened(own, path, device, gpu)
    if runtime != AUTO and runtime not in RUNTIMES:
        raise unknown_name("runtime", str(runtime), [AUTO, *RUNTIMES])
    if own != "torch":
        if runtime == AUTO:
            return _opened(own, path, device, gpu)
        raise UsageError(
            f"{path} is a file for the runtime '{own}', not for '{runtime}'.",
            f"Leave --runtime out, or give the model.safetensors or a file ending in {RUNTIMES[str(runtime)].suffix}.",
        )
    return _beside(path, device, gpu, str(runtime))


def _beside(path: Path, device: str, gpu: int | None, runtime: str) -> Runtime:
    """Open a model.safetensors with another runtime than plain torch, or with the best one."""
    if runtime == AUTO:
        choice = choose(path, device, gpu)
        log.info("Runtime %s: %s.", choice.runtime, choice.reason)
        name, target = choice.runtime, choice.path
    elif RUNTIMES[runtime].suffix == path.suffix:
        name, target = runtime, path
    else:
        name, target = runtime, exported_for(path, runtime)
    opened = _opened(name, target, device, gpu)
    opened.header = read_header(path)
    return opened


def _opened(name: str, path: Path, device: str, gpu: int | None) -> Runtime:
    runtime: Runtime = pkgutil.resolve_name(RUNTIMES[name].reader)(path, device, gpu)
    return runtime


def _own_runtime(path: Path) -> str:
    for name, spec in RUNTIMES.items():
        if spec.suffix == path.suffix:
            return name
    endings = sorted({spec.suffix for spec in RUNTIMES.values()})
    raise UsageError(f"{path} is not a model file by its ending.", f"Models end in {', '.join(endings)}.")
