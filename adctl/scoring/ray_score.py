"""Scoring on a Ray cluster: the model once a node, the images in parts, the rows as Parquet files with a manifest.

    OUT/
      scores.json                  manifest; lists the parts, and the images that were set aside
      part-000000000.parquet       rows of consecutive images, named by the number of the first

A part is written as a whole under a name that depends only on its images, so that a repeated task replaces the file by
the same rows: each image is in the results once. A part whose process ended twice is scored image by image; an image
that ends its process several times is set aside with an error row. The same command continues behind complete parts.
"""

from __future__ import annotations

import logging
import re
import tempfile
import time
from collections import deque
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adctl import documents, files
from adctl.errors import DataError, UsageError
from adctl.progress import SILENT, Reporter
from adctl.ray_cluster import Caller, Lost, Pool, Worker, cluster
from adctl.records import ScoredImage, Verdict
from adctl.runtimes.auto_select import EXPORTS, files_of, read_parity_records
from adctl.scoring.parquet import Place, from_parquet, to_parquet
from adctl.scoring.score import ScoreSummary, open_for_scoring, scored_rows
from adctl.scoring.score import score as score_images
from adctl.scoring.score_set import MANIFEST, manifest_of
from adctl.tracking.models import find_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adctl.config import LoadedSettings, ScoreSettings
    from adctl.records import Calibration, Sample
    from adctl.scoring.score import ScoreResult

log = logging.getLogger(__name__)

PART = 256
"""Images of one part: small enough to repeat, a multiple of all usual batch sizes."""

_PART_NAME = re.compile(r"part-\d{9}\.parquet")
_CHECKED = 100
"""Parts whose names are looked for in a new place; each takes a request to an object store."""

TRIES = 3
"""Ends of its process after which a single image is set aside."""

_PART_TRIES = 2
_NODE_LOSSES = 3
"""Nodes that may be lost with a part in work before it counts as the cause."""
_CLASSIFIER = "adctl-classifier.safetensors"

Scored = tuple[ScoredImage, tuple[float, ...]]
"""Row of an image, and its statistics."""


class Scorer(Worker):
    """Process on a node that holds the model.

    Args:
        caller: Process of the command.
        bundle: Files of the model by name.
        model: Name of the model file among them.
        settings: Settings of `adctl score`.

    Raises:
        UsageError: This node has another version of adctl.
    """

    def __init__(self, caller: Caller, bundle: dict[str, bytes], model: str, settings: ScoreSettings) -> None:
        super().__init__(caller)
        self._settings = settings
        self._folder = tempfile.TemporaryDirectory(prefix="adctl-ray-")
        for name, data in bundle.items():
            (Path(self._folder.name) / name).write_bytes(data)
        if settings.classifier is not None:
            settings = replace(settings, classifier=Path(self._folder.name) / _CLASSIFIER)
        self._runtime = open_for_scoring(Path(self._folder.name) / model, settings)

    def score(self, samples: Sequence[Sample], name: str | None) -> list[Scored]:
        """Score images; write their rows as a part of this name unless it is None.

        Raises:
            OutputError: The part cannot be written.
        """
        found: list[Scored] = []

        def keep(row: ScoredImage, _: Any, inputs: tuple[float, ...]) -> None:
            found.append((row, inputs))

        with closing(scored_rows(self._runtime, samples, self._settings, None, keep)) as rows:
            deque(rows, maxlen=0)
        if name is not None:
            assert self._settings.out is not None
            Place(self._settings.out).write(name, to_parquet([row for row, _ in found]))
        return found


@dataclass
class _Part:
    """Consecutive images that are written to one file.

    Attributes:
        name: Name of the file.
        samples: The images.
        ends: Processes that ended while they scored it.
        losses: Nodes that were lost while they scored it.
    """

    name: str
    samples: Sequence[Sample]
    ends: int = 0
    losses: int = 0


@dataclass
class _Task:
    """Images that one call scores: a part, or one image of a part whose process ended."""

    part: _Part
    index: int | None = None
    ends: int = 0


@dataclass
class _Slow:
    """Part that is scored image by image."""

    rows: dict[int, Scored] = field(default_factory=dict)


def score(loaded: LoadedSettings[ScoreSettings], reporter: Reporter = SILENT) -> ScoreResult:
    """Score images on the Ray cluster of the settings; see `adctl.scoring.score.score`.

    Args:
        loaded: Settings and their origins.
        reporter: Receiver of progress reports.

    Raises:
        AdctlError: As from `adctl.scoring.score.score`, or the cluster cannot be used.
    """
    return score_images(loaded, reporter, score_on_cluster)


def score_on_cluster(
    settings: ScoreSettings,
    model: Path,
    samples: Sequence[Sample],
    manifest: dict[str, Any],
    calibration: Calibration | None,
    reporter: Reporter = SILENT,
) -> ScoreSummary:
    """Score images on a Ray cluster and write the parts and the manifest.

    Args:
        settings: Settings of `adctl score`: `ray` is an address of a cluster or `auto`, and `out` a folder that all
            nodes share, or an address.
        model: Model file of this machine; nodes get copies.
        samples: Images, at paths that all nodes can read.
        manifest: Facts for the manifest; `job` names what decides the results.
        calibration: Calibration of the model, or None.
        reporter: Receiver of progress reports.

    Raises:
        UsageError: No cluster answers, it has other versions, or its nodes are lost.
        OutputError: The results cannot be written.
        MissingExtraError: Ray is not installed.
    """
    assert settings.out is not None
    assert settings.ray is not None
    place, summary = Place(settings.out), ScoreSummary(calibration)
    parts = [
        _Part(f"part-{first:09d}.parquet", samples[first : first + PART]) for first in range(0, len(samples), PART)
    ]
    known = _complete_parts(place, manifest["job"], parts, overwrite=settings.overwrite)
    with cluster(settings.ray) as ray, reporter.stage("scoring", len(samples)) as update:
        start = time.perf_counter()
        _publish(place, manifest, calibration, parts, [], complete=False)
        run = _Run(ray, settings, model, place, calibration)
        rows: dict[str, list[Scored]] = {name: [(row, ()) for row in found] for name, found in known.items()}
        done = sum(map(len, rows.values()))
        if done:
            log.info("Continuing: %d of %d images were scored before.", done, len(samples))
        for part, found in run.score([part for part in parts if part.name not in known]):
            rows[part.name] = found
            done += len(found)
            update(done, len(samples))
        for part in parts:
            for row, inputs in rows[part.name]:
                summary.add(row, inputs)
        drift = summary.drift()
        manifest |= {"seconds": None if known else round(time.perf_counter() - start, 3)}
        manifest |= {"drift": asdict(drift) if drift else None}
        _publish(place, manifest, calibration, parts, run.set_aside, complete=True)
    return summary


def _complete_parts(place: Place, job: str, parts: Sequence[_Part], *, overwrite: bool) -> dict[str, list[ScoredImage]]:
    """Return the rows of the parts that an interrupted call of the same job left; remove the parts of another job.

    Raises:
        UsageError: The place holds other results, or files of the user.
        OutputError: The place cannot be read or written.
    """
    data = place.read(MANIFEST)
    before = _parsed(data)
    if before.get("job") != job:
        if data is not None and not overwrite:
            raise UsageError(
                f"{place.folder} holds other scores already.", "Choose another place with --out, or empty this one."
            )
        foreign = [] if overwrite else [part.name for part in parts[:_CHECKED] if place.exists(part.name)]
        if foreign:
            files.refuse([place.folder / name for name in foreign])
        listed = before.get("parts")
        for entry in listed if isinstance(listed, list) else ():
            if isinstance(entry, dict) and _PART_NAME.fullmatch(str(entry.get("file"))):
                place.remove(entry["file"])
        return {}
    found = {part.name: _stored_rows(place, part) for part in parts}
    return {name: rows for name, rows in found.items() if rows is not None}


def _parsed(data: bytes | None) -> dict[str, Any]:
    try:
        content = None if data is None else documents.parse_json(data)
    except ValueError:
        content = None
    return content if isinstance(content, dict) else {}


def _stored_rows(place: Place, part: _Part) -> list[ScoredImage] | None:
    """Return the rows of a part; None if it is missing or damaged, so that it is scored again."""
    data = place.read(part.name)
    try:
        rows = None if data is None else from_parquet(data, part.name)
    except DataError as error:
        log.warning("%s It is scored again.", error.message)
        return None
    return rows if rows is not None and len(rows) == len(part.samples) else None


def _publish(
    place: Place,
    manifest: dict[str, Any],
    calibration: Calibration | None,
    parts: Sequence[_Part],
    set_aside: Sequence[str],
    *,
    complete: bool,
) -> None:
    rows = sum(len(part.samples) for part in parts) if complete else 0
    listed = [{"file": part.name, "rows": len(part.samples)} for part in parts]
    content = manifest_of(manifest, calibration, rows=rows, complete=complete)
    content |= {"parts": listed, "set_aside": list(set_aside)}
    place.write(MANIFEST, files.to_json(content).encode())


class _Run:
    """Scoring of parts: gives tasks to scorers, and repeats those whose scorer ended.

    Attributes:
        set_aside: Paths of the images that ended their process each time.
    """

    def __init__(
        self, ray: Any, settings: ScoreSettings, model: Path, place: Place, calibration: Calibration | None
    ) -> None:
        self._place = place
        self._threshold = calibration.threshold if calibration else None
        self.set_aside: list[str] = []
        bundle = ray.put({path.name: path.read_bytes() for path in _files_of(model)} | _classifier(settings))
        gpu = 0.0 if settings.device == "cpu" else settings.ray_gpu
        self._pool: Pool[_Task] = Pool(ray, Scorer, (bundle, model.name, settings), cpus=settings.ray_cpus, gpu=gpu)
        self._waiting: list[_Task] = []
        self._slow: dict[str, _Slow] = {}

    def score(self, parts: Sequence[_Part]) -> Iterator[tuple[_Part, list[Scored]]]:
        """Yield each part with its rows when its file is written."""
        self._waiting.extend(_Task(part) for part in parts)
        for task, rows in self._pool.run(self._waiting, _send):
            if isinstance(rows, Lost):
                finished = self._lost(task, here=rows.node_alive)
            else:
                finished = (task.part, rows) if task.index is None else self._collect(task, rows[0])
            if finished is not None:
                yield finished

    def _lost(self, task: _Task, *, here: bool) -> tuple[_Part, list[Scored]] | None:
        """Repeat a task whose process ended, image by image if it is likely to be the cause; return a complete part."""
        part = task.part
        part.losses += not here
        counts = here or part.losses > _NODE_LOSSES
        if task.index is None:
            part.ends += counts
            if part.ends < _PART_TRIES:
                self._waiting.insert(0, task)
                return None
            log.warning("%s ended its process %d times; its images are scored one by one.", part.name, part.ends)
            self._slow[part.name] = _Slow()
            self._waiting.extend(_Task(part, index) for index in range(len(part.samples)))
            return None
        task.ends += counts
        if task.ends < TRIES:
            self._waiting.append(task)
            return None
        return self._collect(task, (self._set_aside(part.samples[task.index]), ()))

    def _set_aside(self, sample: Sample) -> ScoredImage:
        reason = f"{sample.path} ended its process {TRIES} times and was set aside."
        log.warning("%s", reason)
        self.set_aside.append(str(sample.path))
        return ScoredImage(
            path=str(sample.path),
            key=sample.key,
            label=sample.label,
            mask=str(sample.mask) if sample.mask else None,
            score=None,
            threshold=self._threshold,
            verdict=Verdict.ERROR,
            error=reason,
        )

    def _collect(self, task: _Task, scored: Scored) -> tuple[_Part, list[Scored]] | None:
        slow, part = self._slow[task.part.name], task.part
        assert task.index is not None
        slow.rows[task.index] = scored
        if len(slow.rows) < len(part.samples):
            return None
        rows = [slow.rows[index] for index in range(len(part.samples))]
        self._place.write(part.name, to_parquet([row for row, _ in rows]))
        return part, rows


def _send(scorer: Any, task: _Task) -> Any:
    samples, name = task.part.samples, task.part.name
    return scorer.score.remote(*((samples, name) if task.index is None else ([samples[task.index]], None)))


def _classifier(settings: ScoreSettings) -> dict[str, bytes]:
    """Return the file of the classifier by its name in the bundle; empty without one."""
    if settings.classifier is None:
        return {}
    return {_CLASSIFIER: find_model(settings.runs, settings.classifier).read_bytes()}


def _files_of(model: Path) -> list[Path]:
    """Return a model file, the files exported from it, and the record of their checks."""
    exported = [path for one in read_parity_records(model.parent) for path in files_of(model.parent / one.file)]
    beside = [*exported, model.parent / EXPORTS, *files_of(model)]
    return list(dict.fromkeys(path for path in beside if path.is_file()))
