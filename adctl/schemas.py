"""JSON Schemas of the documents that commands print with `--json`, and of the JSON files of runs and scored sets.

They are made from the types of the results. A version such as `adctl.score/1` may get new fields; none is removed,
renamed or given another type without a new number.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from dataclasses import dataclass, is_dataclass
from functools import cache
from typing import (
    TYPE_CHECKING,
    Any,
    NotRequired,  # pydantic needs these before Python 3.12
    get_args,
    get_type_hints,
)

from typing_extensions import TypedDict, is_typeddict

from adctl.benchmarking.results import BenchResult
from adctl.errors import unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from adctl.engine.model_summary import ModelSummary
    from adctl.gates import GateResult
    from adctl.metrics.mean_std import MeanStd
    from adctl.records import Calibration
    from adctl.thresholds.drift import Drift
    from adctl.training.resource_estimate import ResourceEstimate
    from adctl.training.step_forecast import StepForecast

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_TEXTS = {"type": "array", "items": {"type": "string"}}

Setting = TypedDict("Setting", {"value": Any, "from": str})


class Error(TypedDict):
    """Failure of a command."""

    kind: str
    message: str
    remedy: str
    exit_code: int


class Named(TypedDict):
    """Device with the reason for its choice."""

    name: str
    reason: str


class Ignored(TypedDict):
    """Path that was left out."""

    path: str
    reason: str


class PlannedData(TypedDict):
    """Dataset of a planned training."""

    name: str
    category: str
    layout: str
    root: str


class ChosenSize(TypedDict):
    """Size that images are resized to, one number or height and width in pixels, with the reason for it."""

    size: int | list[int]
    reason: str


class Plan(TypedDict):
    """Plan of a training, from --dry-run."""

    dataset: PlannedData
    train_images: int
    groups: dict[str, int]
    test_images: dict[str, int]
    masks: int
    split: dict[str, int]
    ignored: list[Ignored]
    notes: list[str]
    config: dict[str, Any]
    image_size: ChosenSize | None
    device: Named
    forecast: ResourceEstimate | None
    step: StepForecast | None


class Fold(TypedDict):
    """Model of one fold."""

    number: int
    model: str
    images: int
    held_out: int
    threshold: float
    tail: float | None
    metrics: dict[str, float]


class CrossValidation(TypedDict):
    """Result of a cross-validation."""

    run: str
    model: str
    folds: list[Fold]
    spreads: dict[str, MeanStd]
    ensembles: dict[str, dict[str, float]]
    all_images: dict[str, float]
    threshold: float
    best: int
    criterion: str
    notes: list[str]


@dataclass(frozen=True)
class Bench(BenchResult):
    """Results of a benchmark with its gates."""

    schema: str
    gates: tuple[GateResult, ...]


class RunModel(TypedDict):
    """Model file of a run."""

    file: str
    sha256: str


class RunData(TypedDict):
    """Dataset of a run; paths are absolute."""

    name: str
    category: str
    layout: str
    root: str
    good: str | None
    test: str | None
    masks: str | None
    group: str | None
    training_digest: str


class Parent(TypedDict):
    """Model that a run updated."""

    run: str
    model: str
    sha256: str


class Fit(TypedDict):
    """Report of a fit."""

    best_epoch: int | None
    stopped_early: bool
    seconds: dict[str, float]
    precision: str | None
    batch_size: int
    global_batch_size: int
    devices: int
    resumed_at: int | None


class Run(TypedDict):
    """Manifest of a run, `run.json`."""

    schema: str
    finished: str
    arch: str
    model: RunModel
    dataset: RunData
    split: dict[str, int]
    config: dict[str, Any]
    calibration: Calibration
    settings: dict[str, Setting]
    device: Named
    fit: Fit
    summary: ModelSummary
    seconds: float
    energy_j: NotRequired[float | None]
    environment: dict[str, Any]
    parent: NotRequired[Parent]


class ScoredModel(TypedDict):
    """Model of a scored set; the digest of its tensors does not depend on the calibration."""

    path: str
    sha256: str
    tensors_sha256: str | None
    arch: str
    config: dict[str, Any]


class ScoredData(TypedDict):
    """Dataset that the model was trained on."""

    name: str
    category: str


class ScoredRuntime(TypedDict):
    """Runtime that computed the scores."""

    name: str
    device: str


class ScoredPart(TypedDict):
    """Parquet file with rows of a scored set."""

    file: str
    rows: int


class ScoredClassifier(TypedDict):
    """Classifier of a scored set, and the images that it named: rejected, flagged or all."""

    path: str
    sha256: str
    named: str
    classes: list[str]


class Scores(TypedDict):
    """Manifest of a scored set, `scores.json`."""

    schema: str
    complete: bool
    rows: int
    calibration: Calibration | None
    started: str
    model: ScoredModel
    dataset: ScoredData
    views: list[str]
    runtime: ScoredRuntime
    ignored: list[Ignored]
    settings: dict[str, Setting]
    environment: dict[str, Any]
    job: NotRequired[str]
    groups: NotRequired[dict[str, str]]
    seconds: NotRequired[float | None]
    drift: NotRequired[Drift | None]
    classifier: NotRequired[ScoredClassifier]
    parts: NotRequired[list[ScoredPart]]
    set_aside: NotRequired[list[str]]


class RunEntry(TypedDict):
    """Run in the index of runs."""

    id: str
    name: str
    folder: str
    state: str
    started: str
    finished: str
    arch: str
    dataset: str
    category: str
    seed: int | None
    images: int | None
    seconds: float | None
    model: str
    model_sha256: str
    images_sha256: str
    version: str
    machine: str
    tags: list[str]
    note: str
    metrics: dict[str, float]
    settings: dict[str, Any]


class BestRun(RunEntry):
    """Best run, with the path of its model file."""

    path: str


class ExportedRuns(TypedDict):
    """File of exported runs."""

    path: str
    runs: int


class RunsPage(TypedDict):
    """Page of runs that is being served."""

    page: str


class RemovedRuns(TypedDict):
    """Names of removed runs, and the files in their folders that adctl did not write, which stay."""

    removed: list[str]
    left: dict[str, list[str]]


_HERE = "adctl.schemas"
_FETCHED = ("adctl.fetching.datasets:FetchResult", "adctl.fetching.bundles:BundleInstallResult")
_VERIFIED = "list of adctl.fetching.verifying:VerifyResult"

RESULTS: dict[str, tuple[str, ...]] = {
    "train": (
        "adctl.training.single_run:TrainResult",
        "adctl.training.grid:GridResult",
        f"{_HERE}:CrossValidation",
        f"{_HERE}:Plan",
        "adctl.classification.training.results:ClassifierResult",
        "adctl.classification.training.grid:ClassifierGridResult",
        "adctl.classification.training.train:ClassifierForecast",
    ),
    "tune": ("adctl.tuning.study:TuneResult",),
    "calibrate": (
        "adctl.calibration.calibrate:CalibrateResult",
        "adctl.calibration.learning_curve:LearningCurve",
        "adctl.calibration.classifier:KindsCalibration",
    ),
    "score": (
        "adctl.scoring.score:ScoreResult",
        "adctl.scoring.products:ProductsResult",
        "adctl.scoring.classify:KindsResult",
    ),
    "report": (
        "adctl.reporting.report:ReportResult",
        "adctl.reporting.compare:CompareResult",
        "adctl.reporting.classifier_report:ClassifierReport",
    ),
    "export": ("adctl.exporting.export:ExportResult",),
    "bench": (f"{_HERE}:Bench",),
    "fetch": (
        *_FETCHED,
        "adctl.fetching.finding:DatasetStatus",
        "list of adctl.fetching.finding:DatasetStatus",
        _VERIFIED,
    ),
    "fetch check": ("list of adctl.data.checks.check:CheckResult",),
    "fetch bundle": ("adctl.fetching.bundles:BundleResult",),
    "fetch weights": ("adctl.fetching.weights:FetchedWeights",),
    "fetch verify": (_VERIFIED,),
    "serve": ("adctl.serve.server:ServeResult",),
    **dict.fromkeys(("serve keys", "serve keys list"), ("list of adctl.serve.keys:Key",)),
    "serve keys add": ("adctl.serve.keys:NewKey",),
    "serve keys revoke": ("adctl.serve.keys:Key",),
    "demo": ("adctl.demonstration:DemoResult",),
    "demo line": ("adctl.line_demonstration:DemoLineResult",),
    **dict.fromkeys(("runs", "runs list", "runs compare"), (f"list of {_HERE}:RunEntry",)),
    "runs show": (f"{_HERE}:RunEntry",),
    "runs best": (f"{_HERE}:BestRun",),
    **dict.fromkeys(("runs tag", "runs note"), ("adctl.tracking.folders:Notes",)),
    **dict.fromkeys(("runs accept", "runs rollback"), ("adctl.tracking.versions:AcceptedVersion",)),
    "runs lineage": ("adctl.tracking.lineage:LineageNode",),
    "runs export": (f"{_HERE}:ExportedRuns",),
    "runs prune": ("adctl.tracking.prune:PruneResult",),
    "runs rm": (f"{_HERE}:RemovedRuns",),
    "runs view": (f"{_HERE}:RunsPage",),
    "runs index": ("adctl.tracking.index:IndexResult",),
    "schema": (),
}
"""Types of the results that each command prints with `--json`."""

FILES = {
    "run.json": f"{_HERE}:Run",
    "scores.json": f"{_HERE}:Scores",
    "results.jsonl": "adctl.records:ScoredImage",
}
"""Types of JSON files; of `results.jsonl`, that of each line."""


def documents() -> dict[str, str]:
    """Return the names of all documents, each with its content in words."""
    return {
        **{name: f"what 'adctl {name} --json' prints" for name in RESULTS},
        "run.json": "manifest of a run",
        "scores.json": "manifest of a scored set",
        "results.jsonl": "row of one image, one on each line",
    }


def schema(document: str) -> dict[str, Any]:
    """Return the JSON Schema of a document.

    Args:
        document: A command, such as `fetch check`, for what it prints with `--json`; or a key of `FILES`.

    Raises:
        UsageError: There is no such document.
    """
    if document in FILES:
        content, definitions = _type_schema(FILES[document])
        return {"$schema": DIALECT, "title": document, **content, "$defs": definitions}
    if document not in RESULTS:
        raise unknown_name("document", document, documents())
    variants: list[dict[str, Any]] = [{"type": "object"}] if document == "schema" else []  # any schema
    shared: dict[str, Any] = {}
    for kind in (*RESULTS[document], f"table of {_HERE}:Setting"):
        content, definitions = _type_schema(kind)
        variants.append(content)
        shared |= definitions
    error, definitions = _type_schema(f"{_HERE}:Error")
    return {
        "$schema": DIALECT,
        "title": f"adctl {document} --json",
        "oneOf": [
            _envelope(document.split(maxsplit=1)[0], {"result": {"anyOf": variants}, "warnings": _TEXTS}),
            _envelope("error", {"error": error}),
        ],
        "$defs": shared | definitions,
    }


def _envelope(name: str, content: dict[str, Any]) -> dict[str, Any]:
    properties = {"schema": {"const": f"adctl.{name}/1"}, "ok": {"const": "error" not in content}, **content}
    return {"type": "object", "properties": properties, "required": [*properties]}


def _array_of(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _type_schema(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the schema of a type, or of a list or table of it, and the definitions that it refers to."""
    *several, place = kind.split(" of ")
    module, name = place.split(":")
    content, definitions = _schema_of(getattr(importlib.import_module(module), name))
    if several == ["list"]:
        content = _array_of(content)
    elif several == ["table"]:
        content = {"type": "object", "additionalProperties": content}
    return content, definitions


@cache
def _schema_of(cls: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    from pydantic import ConfigDict, TypeAdapter

    names: dict[str, Any] = {}
    described = dict(_types_in(cls, names))
    config = ConfigDict(
        defer_build=True, arbitrary_types_allowed=True, json_schema_serialization_defaults_required=True
    )
    adapter: TypeAdapter[Any] = TypeAdapter(list[cls], config=config)
    adapter.rebuild(_types_namespace=names)
    found = adapter.json_schema(mode="serialization", schema_generator=_generator())
    definitions = found.pop("$defs", {})
    for name, definition in definitions.items():
        if name in described:
            _describe(definition, described[name])
    return found["items"], definitions


def _generator() -> Any:
    """Return the schema generator of pydantic, extended by arrays of NumPy: numbers that are not finite become null."""
    from pydantic.json_schema import GenerateJsonSchema

    class Generator(GenerateJsonSchema):
        def field_is_required(self, field: Any, total: bool) -> bool:
            if field["type"] == "typed-dict-field":
                return bool(field.get("required", total))
            return super().field_is_required(field, total)

        def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> Any:
            del schema, error_info
            return _array_of({"type": ["number", "null"]})

    return Generator


def _types_in(cls: Any, names: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the records that a record consists of, itself included; fill in names imported for type checkers alone."""
    bases = getattr(cls, "__mro__", ()) if is_dataclass(cls) else (cls,)
    for base in bases:
        names |= _hidden_names(base)
    yield cls.__name__, cls
    waiting = list(get_type_hints(cls, localns=names).values())
    seen = {cls}
    while waiting:
        hint = waiting.pop()
        waiting += get_args(hint)
        if hint not in seen and (is_dataclass(hint) or is_typeddict(hint)):
            seen.add(hint)
            yield from _types_in(hint, names)


def _hidden_names(cls: Any) -> dict[str, Any]:
    """Return the names in a record's annotations that its module imports for type checkers alone."""
    module = sys.modules[cls.__module__]
    annotations = inspect.get_annotations(cls).values()
    wanted = set(re.findall(r"\w+", " ".join(map(str, annotations)))) - vars(module).keys()
    if not wanted or not cls.__module__.startswith("adctl"):
        return {}
    return {name: load() for name, load in _imported_for_types(cls.__module__).items() if name in wanted}


@cache
def _imported_for_types(module: str) -> dict[str, Callable[[], Any]]:
    """Return the names that a module imports under TYPE_CHECKING, each with the function that loads it."""
    blocks = [
        node
        for node in ast.parse(inspect.getsource(sys.modules[module])).body
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]

    def loader(place: str, name: str) -> Callable[[], Any]:
        return lambda: getattr(importlib.import_module(place), name)

    return {
        alias.asname or alias.name: loader(str(node.module), alias.name) for node in imports for alias in node.names
    }


def _describe(definition: dict[str, Any], cls: Any) -> None:
    """Replace a record's docstring by its first paragraph, and describe its fields by the section on attributes."""
    text = inspect.getdoc(cls) or ""
    definition["description"] = " ".join(text.split("\n\n")[0].split())
    section = text.partition("Attributes:\n")[2]
    for name, words in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE):
        if name in definition.get("properties", {}):
            definition["properties"][name] = {"description": " ".join(words.split()), **definition["properties"][name]}
