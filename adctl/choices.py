"""Tables of the choices by name: built-in detectors, export formats with their runtimes, report formats, loggers.

A new choice needs one row here and the module that the row names. A row names its code as text, `module:function`, so
that nothing is imported before it is used. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

DETECTORS = {
    "clip": "adctl.detectors.clip:Clip",
    "cnn": "adctl.detectors.cnn:ConvolutionalAutoencoder",
    "composition": "adctl.detectors.composition:Composition",
    "diffusion": "adctl.detectors.diffusion:Diffusion",
    "dinomaly": "adctl.detectors.dinomaly:Dinomaly",
    "efficientad": "adctl.detectors.efficientad:EfficientAD",
    "ensemble": "adctl.detectors.ensemble:Ensemble",
    "padim": "adctl.detectors.padim:PaDiM",
    "patchcore": "adctl.detectors.patchcore:PatchCore",
    "prompt": "adctl.detectors.prompt:PromptDetector",
    "resnet": "adctl.detectors.resnet:ResNetAutoencoder",
    "simplenet": "adctl.detectors.simplenet:SimpleNet",
    "vit": "adctl.detectors.vit:VisionTransformerAutoencoder",
}
"""Built-in detectors by name; `adctl.detectors.registry` adds those of other packages."""

BALANCES = ("none", "weights", "class-balanced", "focal", "oversample", "undersample")
"""Treatments of rare kinds; `adctl.classification.balance` and `objective` hold what they do."""

PRECISIONS = {"fp32": "", "fp16": "--half", "int8": "--int8"}
"""Precisions of an exported file, each with the flag that asks for it."""


@dataclass(frozen=True)
class RuntimeSpec:
    """Description of a runtime.

    Attributes:
        reader: Runtime class, as `module:Class`; called with the path, the device and the number of the GPU.
        suffix: Suffix of the files that it opens.
        package: Python package that computes; its version is stored with a verified export.
    """

    reader: str
    suffix: str
    package: str


@dataclass(frozen=True)
class ExportFormat:
    """Description of an export format, with the runtime that opens it.

    Attributes:
        writer: Function that writes it, as `module:function`; called with the source, the target, the precision and
            the images that calibrate int8.
        runtime: Name of the runtime, as after `--runtime`.
        opened_by: Description of the runtime.
        precisions: Supported precisions.
        sidecar: Suffix of the weights file beside the main file; empty if there is none.
    """

    writer: str
    runtime: str
    opened_by: RuntimeSpec
    precisions: tuple[str, ...] = ("fp32",)
    sidecar: str = ""

    @property
    def suffix(self) -> str:
        """Suffix of the main file."""
        return self.opened_by.suffix


@dataclass(frozen=True)
class ReportFormat:
    """Description of a report format.

    Attributes:
        writer: Function that writes it, as `module:function`; called with the scored set, its evaluation, the target
            and a `ReportOptions`.
        aliases: Other file suffixes that select this format.
    """

    writer: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoggerSpec:
    """Description of a logger.

    Attributes:
        logger: Logger class, as `module:Class`; called without arguments.
        package: Python package that it needs.
        extra: Extra of adctl that installs the package; such a logger runs in a process of its own. Empty if the
            package is always installed.
    """

    logger: str
    package: str
    extra: str = ""


EXPORT_FORMATS = {
    "onnx": ExportFormat(
        "adctl.exporting.onnx:write",
        "onnxruntime",
        RuntimeSpec("adctl.runtimes.onnx:OnnxRuntime", ".onnx", "onnxruntime"),
        ("fp32", "fp16", "int8"),
    ),
    "openvino": ExportFormat(
        "adctl.exporting.openvino:write",
        "openvino",
        RuntimeSpec("adctl.runtimes.openvino:OpenVinoRuntime", ".xml", "openvino"),
        ("fp32", "fp16", "int8"),
        sidecar=".bin",
    ),
    "torchscript": ExportFormat(
        "adctl.exporting.torchscript:write",
        "torchscript",
        RuntimeSpec("adctl.runtimes.torchscript:TorchScriptRuntime", ".ts", "torch"),
    ),
    "pt2": ExportFormat(
        "adctl.exporting.torch_export:write",
        "torch-export",
        RuntimeSpec("adctl.runtimes.torch_export:ArchiveRuntime", ".pt2", "torch"),
    ),
}
"""Export formats by name, as after `adctl export --format`."""

RUNTIMES = {
    "torch": RuntimeSpec("adctl.runtimes.torch:TorchRuntime", ".safetensors", "torch"),
    "torch-compile": RuntimeSpec("adctl.runtimes.torch:CompiledTorchRuntime", ".safetensors", "torch"),
    **{spec.runtime: spec.opened_by for spec in EXPORT_FORMATS.values()},
}
"""Runtimes by name, as after `--runtime`. If two have the same suffix, the first is the default for such files."""

REPORT_FORMATS = {
    "html": ReportFormat("adctl.reporting.page:write_report", aliases=("htm",)),
    "md": ReportFormat("adctl.reporting.text_formats:write_markdown", aliases=("markdown",)),
    "json": ReportFormat("adctl.reporting.text_formats:write_document"),
    "csv": ReportFormat("adctl.reporting.text_formats:write_csv"),
    "tex": ReportFormat("adctl.reporting.latex:write_latex", aliases=("latex",)),
    "pdf": ReportFormat("adctl.reporting.pdf:write_pdf"),
    "pptx": ReportFormat("adctl.reporting.slides:write_slides"),
}
"""Report formats by name, which is also the suffix of their files."""

COMPARISON_FORMATS = {
    "html": "adctl.reporting.comparison_page:write_comparison",
    "tex": "adctl.reporting.latex:write_comparison_tables",
}
"""Formats of a comparison by name, each with its writer; called with the sets, their comparison, the target and the
title."""

LOGGERS = {
    "tensorboard": LoggerSpec("adctl.tracking.loggers.tensorboard:TensorBoardLogger", "tensorboard"),
    "mlflow": LoggerSpec("adctl.tracking.loggers.mlflow:MlflowLogger", "mlflow", "mlflow"),
    "wandb": LoggerSpec("adctl.tracking.loggers.wandb:WandbLogger", "wandb", "wandb"),
}
"""Loggers by name, as after `adctl train --log`."""

GATE_FORMATS = {"junit": "adctl.gate_files:write_junit", "sarif": "adctl.gate_files:write_sarif"}
"""Formats of gate results by the setting that names their file, each with its writer; called with the file, the name of
the command, the results and the file of each subject."""


def format_of_runtime(runtime: str) -> str:
    """Return the name of the export format that a runtime opens."""
    return next(name for name, spec in EXPORT_FORMATS.items() if spec.runtime == runtime)


def formats_with(precision: str) -> list[str]:
    """Return the names of the export formats that can be written in a precision."""
    return [name for name, spec in EXPORT_FORMATS.items() if precision in spec.precisions]
