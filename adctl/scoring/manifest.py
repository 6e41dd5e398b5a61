"""Entries of the manifest `scores.json` that are known before scoring, of detectors and classifiers alike."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import TYPE_CHECKING, Any

from adctl import files, run_folder
from adctl.model_file import tensors_digest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adctl.config import LoadedSettings, ScoreSettings
    from adctl.data.datasets.folders import IgnoredPath
    from adctl.records import Sample
    from adctl.runtimes.base import Runtime
    from adctl.runtimes.classifier import ClassifierRuntime


def opening_entries(
    loaded: LoadedSettings[ScoreSettings],
    model: Path,
    runtime: Runtime | ClassifierRuntime,
    dataset: dict[str, str],
    views: Sequence[str],
    ignored: Sequence[IgnoredPath],
) -> dict[str, Any]:
    """Return model, digests, dataset, runtime, settings and environment; JSON-safe.

    Args:
        loaded: The settings and their origins.
        model: Model file.
        runtime: Runtime that holds it.
        dataset: Names of the dataset, and of the category if there are any, that the model learned from.
        views: Views of test-time augmentation.
        ignored: Paths that hold no images to score.
    """
    header = runtime.header
    return {
        "started": run_folder.timestamp(),
        "model": {
            "path": str(model),
            "sha256": files.sha256_file(model),
            "tensors_sha256": tensors_digest(model),
            "arch": header.arch,
            "config": header.config,
        },
        "dataset": dataset,
        "views": list(views),
        "runtime": {"name": runtime.name, "device": runtime.device},
        "ignored": [{"path": str(item.path), "reason": item.reason} for item in ignored],
        "settings": loaded.table(),
        "environment": run_folder.environment(),
    }


def job_digest(manifest: dict[str, Any], samples: Sequence[Sample], written: Sequence[object] = ()) -> str:
    """Return a digest of what decides the results: model, runtime, images and their state, and what is written.

    A scoring continues behind the rows that an interrupted one with the same digest left.

    Args:
        manifest: Opening entries.
        samples: The images.
        written: Settings that decide which files are written; JSON-safe.
    """

    @cache
    def state(path: Path) -> tuple[int, int]:
        try:
            stat = path.stat()
        except OSError:  # a file inside an archive
            return state(path.parent) if path != path.parent else (0, 0)
        return stat.st_size, stat.st_mtime_ns

    images = [(sample.key, str(sample.path), sample.label, str(sample.mask), *state(sample.path)) for sample in samples]
    known = [manifest[name] for name in ("model", "views", "runtime", "classifier") if name in manifest]
    return hashlib.sha256(json.dumps([known, written, images]).encode()).hexdigest()
