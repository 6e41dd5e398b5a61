"""Select the fastest runtime verified against PyTorch, with the reason.

`adctl export` writes `exports.json` beside the model: one record for each exported file, with the result of its
verification and its speed. A file is selected only if it is unchanged since then, was exported from the same tensors
in single precision, and was verified on this machine with the installed version of its runtime. Otherwise PyTorch is
selected.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from adctl import documents, files
from adctl.choices import EXPORT_FORMATS, RUNTIMES, format_of_runtime
from adctl.errors import DataError, ModelFileError, UsageError
from adctl.model_file import tensors_digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

EXPORTS = "exports.json"
_SCHEMA = "adctl.exports/1"


@dataclass(frozen=True)
class ParityRecord:
    """Verification of one exported file, as stored in `exports.json`.

    Attributes:
        file: File name.
        sha256: Digests of the file and, if there is one, of its weights file, separated by a space.
        tensors: SHA-256 of the tensors of the exported model; of detector and classifier, separated by a space, if the
            graph is one of both.
        runtime: Name of the runtime.
        version: Version of the runtime's package.
        precision: `fp32`, `fp16` or `int8`.
        machine: Machine of the verification, as `this_machine` describes it.
        equal: Whether all scores agreed within the tolerance of single precision and no verdict changed.
        images_per_second: Speed of the exported file.
        torch_images_per_second: Speed of the model in PyTorch, measured at the same time.
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
    def speedup(self) -> float:
        """Speed relative to PyTorch; 0 in a record that holds no speed of PyTorch."""
        return self.images_per_second / self.torch_images_per_second if self.torch_images_per_second > 0 else 0.0


@dataclass(frozen=True)
class _Exports:
    schema: str
    exports: tuple[ParityRecord, ...]


@dataclass(frozen=True)
class RuntimeChoice:
    """Selected runtime, and the reason for the log.

    Attributes:
        runtime: Name of the runtime.
        path: File to open: the model, or an exported file beside it.
        reason: Reason in words.
    """

    runtime: str
    path: Path
    reason: str


def choose_runtime(path: Path, device: str = "auto", gpu: int | None = None) -> RuntimeChoice:
    """Select the fastest verified runtime for a `model.safetensors`, or PyTorch.

    Raises:
        ModelFileError: The model file cannot be read.
    """
    try:
        records = read_parity_records(path.parent)
    except DataError as error:
        return RuntimeChoice("torch", path, error.message)
    if not records:
        return RuntimeChoice("torch", path, "there are no exported files beside the model")
    if uses_gpu(device, gpu):
        return RuntimeChoice("torch", path, "exported files are verified on the CPU, and a GPU is used")
    digest = tensors_digest(path)
    faults: list[str] = []
    # The fastest first, because the check of a file reads all of it.
    for best in sorted(records, key=lambda record: record.speedup, reverse=True):
        fault = _fault(best, path.parent, digest)
        if fault is None:
            break
        faults.append(f"{best.file} {fault}")
    else:
        return RuntimeChoice("torch", path, "; ".join(faults))
    if best.speedup <= 1:
        return RuntimeChoice("torch", path, f"{best.file} is not faster ({best.speedup:.1f} times as fast as torch)")
    reason = f"{best.file} scores the same and was {best.speedup:.1f} times as fast as torch on this machine"
    return RuntimeChoice(best.runtime, path.parent / best.file, reason)


def find_export(path: Path, runtime: str) -> Path:
    """Return the file exported from a `model.safetensors` for a runtime, preferably in single precision.

    Raises:
        UsageError: There is no such file beside the model.
    """
    digest = tensors_digest(path)
    records = [record for record in read_parity_records(path.parent) if record.runtime == runtime]
    for record in sorted(records, key=lambda record: record.precision != "fp32"):
        if record.tensors == digest and (path.parent / record.file).is_file():
            return path.parent / record.file
    raise UsageError(
        f"Beside {path} there is no file for the runtime '{runtime}' that was exported from this model.",
        f"Write one with 'adctl export --format {format_of_runtime(runtime)}'.",
    )


def save_parity_record(folder: Path, record: ParityRecord) -> None:
    """Add a record to `exports.json`; it replaces an earlier one of the same file.

    Raises:
        OutputError: The file cannot be written.
    """
    try:
        records = read_parity_records(folder)
    except DataError:  # a damaged file is replaced
        records = []
    kept = [other for other in records if other.file != record.file and (folder / other.file).is_file()]
    entries = [asdict(each) for each in (*kept, record)]
    files.write_json(folder / EXPORTS, {"schema": _SCHEMA, "exports": entries})


def read_parity_records(folder: Path) -> list[ParityRecord]:
    """Read the records in a model's folder; return an empty list if there are none.

    Raises:
        DataError: `exports.json` is damaged.
    """
    remedy = "Delete it and export again."
    document = documents.read(folder / EXPORTS, _Exports, remedy)
    if document is None:
        return []
    for record in document.exports:
        if record.runtime not in RUNTIMES or PurePath(record.file).name != record.file:
            raise DataError(f"{folder / EXPORTS} is damaged: {record.file} for {record.runtime}.", remedy)
    return list(document.exports)


def verify_export(path: Path) -> None:
    """Check that an exported file and its weights are those that were verified when they were written.

    A file without a record beside it is not checked.

    Raises:
        ModelFileError: The bytes have changed.
    """
    try:
        records = [record for record in read_parity_records(path.parent) if record.file == path.name]
    except DataError as error:
        log.warning("%s cannot be checked: %s", path, error.message)
        return
    there = all(file.is_file() for file in files_of(path))  # the runtime names what is missing
    if records and there and records[0].sha256 != digest_of(path):
        raise ModelFileError(
            f"{path} is damaged: it does not match its checksum in {EXPORTS}.", "Export it again with 'adctl export'."
        )


def files_of(path: Path) -> Iterator[Path]:
    """Yield an exported file and, if its format has one, the weights file beside it."""
    yield path
    for export_format in EXPORT_FORMATS.values():
        if export_format.suffix == path.suffix and export_format.sidecar:
            yield path.with_suffix(export_format.sidecar)


def digest_of(path: Path) -> str:
    """Return the SHA-256 digests of an exported file and its weights file, separated by a space."""
    return " ".join(files.sha256_file(file) for file in files_of(path))


def version_of(runtime: str) -> str | None:
    """Return the version of a runtime's package; None if it is not installed."""
    package = RUNTIMES[runtime].package
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # installed under another name, as onnxruntime-gpu
        return "unknown"


def this_machine() -> str:
    """Describe the processor and the number of its logical cores, which determine speed and rounding."""
    return f"{_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:  # noqa: PTH123 - a system file
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _fault(record: ParityRecord, folder: Path, digest: str | None) -> str | None:
    """Return the reason not to use an exported file, or None."""
    path = folder / record.file
    needed = f"{record.runtime} {record.version}"
    checks: list[tuple[bool, str]] = [
        (" " in record.tensors, "has a classifier too, so it is used only if you name the file"),
        (record.tensors != digest, "was exported from another model"),
        (record.precision != "fp32", f"is {record.precision}, which is used only if you name the file"),
        (not record.equal, "did not score the same"),
        (record.machine != this_machine(), "was verified on another machine: export it again here"),
        (record.version != version_of(record.runtime), f"was verified with {needed}, which is not installed"),
    ]
    for failed, fault in checks:
        if failed:
            return fault
    if not all(file.is_file() for file in files_of(path)):
        return "is missing"
    # Last, because it reads the whole file.
    return None if digest_of(path) == record.sha256 else "was changed after its verification"


def uses_gpu(device: str, gpu: int | None) -> bool:
    """Return whether PyTorch computes on a GPU with these settings."""
    if gpu is not None or device in ("cuda", "mps"):
        return True
    return device == "auto" and _has_gpu()


def _has_gpu() -> bool:
    """Return whether the system has a GPU for PyTorch; torch is not imported, because that takes seconds."""
    if platform.system() == "Darwin":
        return platform.machine() == "arm64"
    return os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/kfd")  # noqa: PTH110 - system files
