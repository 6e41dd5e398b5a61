"""The fastest runtime that is proved to score a model as torch does, and why it is.

`adctl export` writes `exports.json` beside a model: for each exported file what it came from, how it compared with
torch on image files, and how fast both were, on this machine. Only a file that is still the one that was proved, made
from the very tensors of the model, in single precision, on this machine and with the same version of its runtime is
chosen without being asked for. Everything else is a reason to take torch, and is said.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from adctl import files, run_folder
from adctl.choices import EXPORT_FORMATS, RUNTIMES, format_of_runtime
from adctl.errors import DataError, UsageError
from adctl.model_file import tensors_digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXPORTS = "exports.json"
_SCHEMA = "adctl.exports/1"


@dataclass(frozen=True)
class ParityRecord:
    """What was measured of one exported file when it was made.

    Attributes:
        file: Its name.
        sha256: Of its bytes, and of the weights beside it where there are any.
        tensors: SHA-256 of the tensors of the model it was made from.
        runtime: That it is for.
        version: Of that runtime's package.
        precision: `fp32`, `fp16` or `int8`.
        machine: Where it was proved.
        equal: Whether scores agreed within the tolerance of single precision and no verdict changed.
        images_per_second: Of it.
        torch_images_per_second: Of the model it came from, in the same minutes.
    """

    file: str
    sha256: str
    tensors: str
    runtime: str
    version: str | None
    precision: str
    machine: str
    equal: bool
    images_per_second: float
    torch_images_per_second: float

    @property
    def gain(self) -> float:
        """How many times as fast as torch."""
        return self.images_per_second / self.torch_images_per_second


@dataclass(frozen=True)
class RuntimeChoice:
    """A runtime, the file to open with it, and the reason.

    Attributes:
        runtime: A name from `RUNTIMES`.
        path: The model itself, or an exported file beside it.
        reason: For the log.
    """

    runtime: str
    path: Path
    reason: str


def choose(path: Path, device: str = "auto", gpu: int | None = None) -> RuntimeChoice:
    """The fastest proved runtime for a `model.safetensors`.

    Args:
        path: The model file.
        device: As typed.
        gpu: As typed.

    Raises:
        ModelFileError: The model file cannot be read.
    """
    try:
        proofs = read_parity_records(path.parent)
    except DataError as error:
        return RuntimeChoice("torch", path, error.message)
    if not proofs:
        return RuntimeChoice("torch", path, "nothing is exported beside the model")
    if _on_gpu(device, gpu):
        return RuntimeChoice("torch", path, "exported files are proved on the CPU, and this is a GPU")
    digest = tensors_digest(path)
    faults = {proof.file: _fault(proof, path.parent, digest) for proof in proofs}
    sound = sorted((one for one in proofs if faults[one.file] is None), key=lambda one: -one.gain)
    if not sound:
        return RuntimeChoice("torch", path, "; ".join(f"{name} {fault}" for name, fault in faults.items()))
    best = sound[0]
    if best.gain <= 1:
        return RuntimeChoice("torch", path, f"{best.file} is equal but no faster ({best.gain:.1f} times)")
    reason = f"{best.file} scores the same and was {best.gain:.1f} times as fast as torch on this machine"
    return RuntimeChoice(best.runtime, path.parent / best.file, reason)


def exported_for(path: Path, runtime: str) -> Path:
    """The exported file beside a `model.safetensors` for a runtime, made from its very tensors; single precision first.

    Raises:
        UsageError: There is none.
    """
    digest = tensors_digest(path)
    made = [one for one in read_parity_records(path.parent) if one.runtime == runtime and one.tensors == digest]
    for proof in sorted(made, key=lambda one: one.precision != "fp32"):
        if (path.parent / proof.file).is_file():
            return path.parent / proof.file
    raise UsageError(
        f"Beside {path} there is no file for the runtime '{runtime}' that was made from this model.",
        f"Write one with 'adctl export --format {format_of_runtime(runtime)}'.",
    )


def record(folder: Path, proof: ParityRecord) -> None:
    """Keep a proof, in place of an earlier one of the same file.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        others = [
            one for one in read_parity_records(folder) if one.file != proof.file and (folder / one.file).is_file()
        ]
    except DataError:  # damaged: nothing in it is worth keeping
        others = []
    kept = [asdict(one) for one in (*others, proof)]
    files.write_json(folder / EXPORTS, {"schema": _SCHEMA, "exports": kept})


def read_parity_records(folder: Path) -> list[ParityRecord]:
    """Those beside a model, or none.

    Raises:
        DataError: The file of them is damaged.
    """
    document = run_folder.read_json(folder / EXPORTS)
    if document is None:
        return []
    try:
        return [ParityRecord(**one) for one in document["exports"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / EXPORTS} is damaged: {error}.", "Delete it and export again.") from error


def files_of(path: Path) -> Iterator[Path]:
    """An exported file and the weights that lie beside it."""
    yield path
    for one in EXPORT_FORMATS.values():
        if one.suffix == path.suffix and one.sidecar:
            yield path.with_suffix(one.sidecar)


def digest_of(path: Path) -> str:
    """Of an exported file and its weights."""
    return " ".join(files.sha256_file(one) for one in files_of(path))


def version_of(runtime: str) -> str | None:
    """Of the package a runtime comes with; None where it is not installed."""
    package = RUNTIMES[runtime].package
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # under another name, as onnxruntime-gpu
        return "unknown"


def this_machine() -> str:
    """What decides speed and rounding: the processor and how many cores this process may use."""
    return f"{_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as told:  # noqa: PTH123 - no file of ours
            for line in told:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _fault(proof: ParityRecord, folder: Path, digest: str | None) -> str | None:
    """Why an exported file is not to be taken, or None."""
    path = folder / proof.file
    checks: list[tuple[bool, str]] = [
        (proof.tensors != digest, "was made from another model"),
        (proof.precision != "fp32", f"is {proof.precision}, which is used when its file is named"),
        (not proof.equal, "did not score the same"),
        (proof.machine != this_machine(), "was proved on another machine: export it again here"),
        (proof.version != version_of(proof.runtime), f"needs {proof.runtime} {proof.version}, as when it was proved"),
    ]
    for wrong, fault in checks:
        if wrong:
            return fault
    # Last, since it reads the whole file.
    if not all(one.is_file() for one in files_of(path)):
        return "has gone"
    return None if digest_of(path) == proof.sha256 else "was changed since it was proved"


def _on_gpu(device: str, gpu: int | None) -> bool:
    if gpu is not None or device in ("cuda", "mps"):
        return True
    return device == "auto" and _has_gpu()


def _has_gpu() -> bool:
    """Whether torch would find one; asked of the system, since importing torch is what an exported file spares."""
    if platform.system() == "Darwin":
        return platform.machine() == "arm64"
    return os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/kfd")  # noqa: PTH110 - no files of ours
