"""Verdict and name together: a classifier names the images that a detector rejects."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import check_document, settings
from test_classifier import write_kinds

import adctl
from adctl.classification.model_file import load_classifier
from adctl.classification.predict import classify_pixels
from adctl.config import LoadedSettings, ScoreSettings, names_of, validated
from adctl.data.loader import load_image, stack_pixels
from adctl.errors import ModelFileError, UsageError
from adctl.evaluation.evaluate import evaluate
from adctl.line.scoring import score_sources
from adctl.model_file import load_model, save_model
from adctl.records import Sample, Verdict
from adctl.reporting.content import build_content
from adctl.scoring.naming import NAMED, NamingRuntime
from adctl.scoring.score import open_model, score
from adctl.scoring.score_set import ScoreSet
from adctl.scoring.tta import with_views
from adctl.training.single_run import train_once

SIDE = 64


class World:
    """A detector, a classifier, and images of both known kinds and of one that the classifier has never seen."""

    def __init__(self, folder: Path) -> None:
        from adctl.classification.training.train import train_classifier

        self.runs = folder / "runs"
        known = write_kinds(folder / "kinds", {"dot": 10, "good": 14, "stripe": 10})
        write_kinds(folder / "parts" / "train", {"good": 16}, seed=9000)
        self.images = write_kinds(folder / "parts" / "test", {"dot": 3, "good": 5, "stripe": 3}, seed=5000)
        common = {"runs": self.runs, "image_size": SIDE}
        self.model = train_once(settings(arch="padim", data=folder / "parts", name="line", **common)).model
        self.kinds = train_classifier(settings(task="classify", data=known, name="kinds", epochs=None, **common)).model

    def score(self, out: Path | None = None, run: Any = score, **values: Any):
        given = {"model": self.model, "images": [str(self.images)], "classifier": self.kinds, "out": out, **values}
        given = {"device": "cpu", "runtime": "torch", "heatmaps": False, "runs": self.runs, **given}
        return run(LoadedSettings(validated(ScoreSettings, given), dict.fromkeys(names_of(ScoreSettings), "test")))


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("naming"))


def names_alone(world: World, paths: list[str]) -> list[str]:
    """Return the names that the classifier alone gives."""
    from adctl.classification.decision import decide

    classifier, header = load_classifier(world.kinds)
    pixels = stack_pixels([load_image(Sample(Path(path), path), classifier.input) for path in paths])
    logits, distances = classify_pixels(classifier, pixels, torch.device("cpu"))
    return decide(header.decision, logits, distances).names(header.classes)


def test_rejected_images_get_the_name_that_the_classifier_alone_gives(world, tmp_path):
    result = world.score(tmp_path / "out")
    rejected = [row for row in result.rows if row.verdict is Verdict.REJECT]
    assert len(rejected) >= 5
    assert [row.kind for row in rejected] == names_alone(world, [row.path for row in rejected])
    assert {row.kind for row in rejected} >= {"dot", "stripe"}
    assert all(0 <= row.kind_probability <= 1 for row in rejected)
    assert all(row.kind is None for row in result.rows if row.verdict is not Verdict.REJECT)
    assert sum(result.kinds.values()) == len(rejected)
    with (tmp_path / "out" / "results.csv").open(newline="", encoding="utf-8") as stream:
        assert [line["kind"] or None for line in csv.DictReader(stream)] == [row.kind for row in result.rows]
    manifest = json.loads((tmp_path / "out" / "scores.json").read_text("utf-8"))
    assert manifest["classifier"]["classes"] == ["dot", "good", "stripe"]
    check_document(manifest, "scores.json")


def test_one_pass_two_passes_and_another_size_give_the_same_names(world, tmp_path):
    runtime = open_model(world.model, "cpu", None, "torch")
    shared = NamingRuntime(runtime, world.kinds, "all")
    assert shared.shares
    items = [load_image(Sample(path, path.name), shared.input) for path in sorted(world.images.rglob("*.png"))]
    scores = shared.predict(stack_pixels(items)).scores
    once = shared.names(items, scores)
    shared._shared = None
    twice = shared.names(items, scores)
    assert [name.kind for name in once] == [name.kind for name in twice]
    assert [name.probability for name in once] == pytest.approx([name.probability for name in twice], abs=1e-4)
    other = classifier_of_other_size(world, tmp_path)
    assert not NamingRuntime(runtime, other, "all").shares
    again = world.score(classifier=other, classify="all")
    assert [row.kind for row in again.rows] == [row.kind for row in world.score(classify="all").rows]


def classifier_of_other_size(world: World, folder: Path) -> Path:
    """Return a copy of the classifier whose input has another format, in which square images are the same."""
    from dataclasses import replace

    from adctl.classification.model_file import save_classifier

    classifier, header = load_classifier(world.kinds)
    path = folder / "other.safetensors"
    save_classifier(path, classifier, replace(header, config={**header.config, "image_size": SIDE, "resize": "pad"}))
    return path


def test_other_weights_share_no_pass(world, tmp_path):
    detector, header = load_model(world.model)
    with torch.no_grad():
        next(iter(detector.backbone.network.parameters())).add_(0.01)
    save_model(tmp_path / "model.safetensors", detector, header)
    runtime = open_model(tmp_path / "model.safetensors", "cpu", None, "torch")
    assert not NamingRuntime(runtime, world.kinds, "rejected").shares


def test_views_name_by_a_second_pass(world):
    runtime = with_views(open_model(world.model, "cpu", None, "torch"), ["hflip"])
    assert not NamingRuntime(runtime, world.kinds, "rejected").shares
    assert NAMED["rejected"] < NAMED["flagged"] < NAMED["all"]


def test_python_gives_verdict_and_name(world):
    model = adctl.load(str(world.model), classifier=world.kinds, classify="all", device="cpu", runtime="torch")
    image = min((world.images / "dot").glob("*.png"))
    assert model.predict(image).kind == names_alone(world, [str(image)])[0]


def test_a_detector_is_no_classifier_and_the_reverse(world):
    with pytest.raises(ModelFileError, match="no classifier, but a detector"):
        world.score(classifier=world.model)
    with pytest.raises(ModelFileError, match="is a classifier"):
        world.score(model=world.kinds)
    with pytest.raises(UsageError, match="needs a classifier"):
        world.score(classifier=None, classify="all")


def test_a_model_without_threshold_names_all_or_nothing(world, tmp_path, caplog):
    from dataclasses import replace

    detector, header = load_model(world.model)
    save_model(tmp_path / "model.safetensors", detector, replace(header, calibration=None))
    with pytest.raises(UsageError, match="rejects no image"):
        world.score(model=tmp_path / "model.safetensors")
    with caplog.at_level(logging.ERROR):
        result = world.score(model=tmp_path / "model.safetensors", classify="all")
    assert all(row.kind is not None for row in result.rows)


def test_the_report_breaks_misses_and_alarms_down_by_name(world, tmp_path):
    world.score(tmp_path / "out", classify="all")
    page = adctl.report(scores=[tmp_path / "out"]).page.read_text("utf-8")
    assert "By predicted kind" in page
    assert '"named": true' in page or '"named":true' in page
    scores = ScoreSet.load(tmp_path / "out")
    (table,) = [table for table in build_content(scores, evaluate(scores)).tables if table.headers[0] == "Named"]
    lines = {line[0]: line[1:] for line in table.rows}
    assert sum(int(line[0]) for line in lines.values()) == len(scores.rows)
    found = sum(row.kind == "dot" and row.label != "good" and row.verdict is Verdict.REJECT for row in scores.rows)
    assert int(lines["dot"][1]) == found >= 1
    assert lines["dot"][4].endswith(f" of {lines['dot'][0]}")


def test_sinks_get_the_kind_of_each_rejected_part(world, tmp_path):
    shutil.copytree(world.images / "dot", tmp_path / "new")
    sheet = tmp_path / "verdicts.csv"
    given = {"images": (), "source": (str(tmp_path / "new"),), "sink": (f"csv:{sheet}",), "settle": 0.0, "maps": False}
    world.score(tmp_path / "out", score_sources, **given, watch_idle=0.5, runs=tmp_path)
    with sheet.open(newline="", encoding="utf-8") as stream:
        found = list(csv.DictReader(stream))
    rejected = [row for row in found if row["verdict"] == "reject"]
    assert [row["kind"] for row in rejected] == names_alone(world, [row["image"] for row in rejected])
    assert rejected
    assert all(0 <= float(row["kind_probability"]) <= 1 for row in rejected)


def test_the_server_names_rejected_parts_and_keeps_the_name(world, tmp_path):
    from starlette.testclient import TestClient

    from adctl.config import ServeSettings
    from adctl.serve.app import create_app
    from adctl.serve.state import Server

    shutil.copytree(world.kinds.parent, tmp_path / "runs" / "kinds")
    wanted = {"model": (f"line={world.model}",), "classifier": "kinds", "runs": tmp_path / "runs", "device": "cpu"}
    server = Server(validated(ServeSettings, {**wanted, "runtime": "torch"}))
    server.start()
    try:
        client = TestClient(create_app(server), base_url="http://127.0.0.1:8000")
        image = (world.images / "dot" / "000.png").read_bytes()

        def result(query: str = ""):
            answer = client.post(f"/v1/models/line/score{query}", content=image, headers={"Content-Type": "image/png"})
            return answer.json()["results"][0]

        first = result()
        assert first["verdict"] == "reject"
        assert first["kind"] == names_alone(world, [str(world.images / "dot" / "000.png")])[0]
        assert result("?threshold=1e9")["kind"] is None
        assert [model["classes"] for model in client.get("/v1/models").json()] == [["dot", "good", "stripe"]]
        found = client.get("/v1/history", params={"kind": first["kind"]}).json()["verdicts"]
        assert [one["kind"] for one in found] == [first["kind"]]
        assert client.get("/v1/history", params={"kind": "stain"}).json()["verdicts"] == []
        changed = server.models.set_threshold("line", 1e9, "test")
        assert changed.runtime.shares
        assert result()["kind"] is None
    finally:
        server.stop()
