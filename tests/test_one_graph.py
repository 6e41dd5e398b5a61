"""Detector and classifier in one exported graph: the outputs of PyTorch, and verdict and name without --classifier."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import check_document
from test_naming import World, classifier_of_other_size, names_alone

import adctl as adctl_package
from adctl.choices import EXPORT_FORMATS
from adctl.classification.header import is_classifier
from adctl.classification.model_file import load_classifier, save_classifier
from adctl.data.loader import load_image, stack_pixels
from adctl.errors import UsageError
from adctl.exporting.export import write_format
from adctl.exporting.graph import read_source
from adctl.records import Sample
from adctl.runtimes.auto_select import choose_runtime
from adctl.runtimes.classifier import open_classifier
from adctl.runtimes.loading import open_runtime
from adctl.runtimes.metadata import classifier_in
from adctl.scoring.naming import with_names
from adctl.scoring.tta import with_views


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("one_graph"))


@pytest.fixture(scope="module")
def source(world):
    return read_source(world.model, world.kinds)


@pytest.mark.parametrize("name", EXPORT_FORMATS)
def test_one_graph_gives_both_outputs_of_pytorch(world, source, tmp_path, name):
    target = tmp_path / f"both{EXPORT_FORMATS[name].suffix}"
    write_format(name, source, target)
    runtime, detector = open_runtime(target, "cpu"), open_runtime(world.model, "cpu")
    classifier = open_classifier(world.kinds, "cpu")
    assert not is_classifier(target)
    assert runtime.header == detector.header
    assert classifier_in(runtime) == classifier.header
    pixels = source.example(5).numpy()
    for batch in (pixels, pixels[:1]):
        found, wanted = runtime.predict(batch), detector.predict(batch)
        logits, distances = classifier.predict(batch)
        assert np.allclose(found.scores, wanted.scores, rtol=1e-3)
        assert np.allclose(found.maps, wanted.maps, rtol=1e-3, atol=1e-3)
        assert np.allclose(found.logits, logits, atol=2e-3)
        assert np.allclose(found.distances, distances, rtol=1e-3)


def test_the_graph_has_one_backbone_pass(world, source):
    def convolutions(one):
        return sum("conv2d" in str(node.target) for node in one.program.graph.nodes)

    detector, classifier = read_source(world.model), read_source(world.kinds)  # the classifier's is the deeper one
    shared = sum(isinstance(part, torch.nn.Conv2d) for part in detector.detector.backbone.modules())
    assert shared > 30
    assert convolutions(source) == convolutions(classifier) + convolutions(detector) - shared


def test_score_gives_verdict_and_name_from_one_file(adctl, world, tmp_path):
    given = ("export", "--model", world.model, "--classifier", world.kinds, "--out", tmp_path, "--runs", world.runs)
    exported = adctl.json(*given, "--format", "openvino")["result"]["exports"][0]
    assert exported["kinds"]["changed_verdicts"] == exported["check"]["changed_verdicts"] == 0
    assert exported["kinds"]["images"] == 8  # test images of the classifier's run
    assert exported["file"].endswith("model-classifier.xml")
    out = tmp_path / "out"
    adctl.json("score", world.images, "--model", exported["file"], "--out", out)
    with (out / "results.csv").open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    rejected = [line for line in lines if line["verdict"] == "reject"]
    assert len(rejected) >= 5
    paths = [str(world.images / line["key"]) for line in rejected]
    assert [line["kind"] for line in rejected] == names_alone(world, paths)
    assert not any(line["kind"] for line in lines if line["verdict"] == "good")
    manifest = json.loads((out / "scores.json").read_text("utf-8"))
    assert manifest["classifier"]["classes"] == ["dot", "good", "stripe"]
    check_document(manifest, "scores.json")
    shown = adctl("score", world.images, "--model", exported["file"], "--classify", "all", "--out", out).stdout
    assert "kinds" in shown
    model = adctl_package.load(exported["file"], classify="all")
    image = min((world.images / "dot").glob("*.png"))
    assert model.predict(image).kind == names_alone(world, [str(image)])[0]
    views = with_views(open_runtime(Path(exported["file"]), "cpu"), ["hflip"])
    viewed = with_names(views, Path(exported["file"]), None, "all")
    items = [load_image(Sample(image, image.name), viewed.input)]
    (name,) = viewed.judged_by(None).names(items, viewed.predict(stack_pixels(items)).scores)
    assert name.kind == model.predict(image).kind  # the name of the unchanged image


def test_a_graph_of_both_is_used_only_if_it_is_named(world, tmp_path):
    run = tmp_path / "line"
    shutil.copytree(world.model.parent, run)
    made = adctl_package.export(model=run / "model.safetensors", classifier=world.kinds, runs=world.runs)
    assert made.exports[0].file == run / "model-classifier.onnx"
    choice = choose_runtime(run / "model.safetensors", "cpu")
    assert choice.runtime == "torch"
    assert "has a classifier too" in choice.reason


def refusal(world, classifier, **values):
    with pytest.raises(UsageError) as told:
        adctl_package.export(**{"model": world.model, "classifier": classifier, "runs": world.runs, **values})
    return f"{told.value.message} {told.value.remedy}"


def test_what_cannot_share_a_pass_is_named_with_a_remedy(world, tmp_path):
    other = refusal(world, classifier_of_other_size(world, tmp_path))
    assert "resize squash in the detector and pad in the classifier" in other
    assert "adctl train --task classify --backbone tf_efficientnet_lite0 --image-size 64" in other
    classifier, header = load_classifier(world.kinds)
    next(iter(classifier.backbone.network.parameters())).add_(0.01)
    path = tmp_path / "tuned.safetensors"
    save_classifier(path, classifier, header)
    assert "the weights of the backbones differ" in refusal(world, path)
    save_classifier(path, classifier, replace(header, config={**header.config, "fine_tune": "last"}))
    assert "was tuned (fine_tune=last)" in refusal(world, path)
    assert "is a classifier itself" in refusal(world, world.kinds, model=world.kinds)
    assert not list(world.model.parent.glob("*-classifier*"))
