"""Supervised classifiers: data of labels, heads, imbalance, metrics, decision, training on the command line."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, settings
from scipy.special import softmax
from sklearn import metrics as reference
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss
from torchvision.transforms import v2

import adctl as adctl_package
from adctl import files
from adctl.calibration.classifier import _check_unseen as check_unseen
from adctl.choices import EXPORT_FORMATS
from adctl.classification.balance import (
    balanced_indices,
    class_weights,
    prior_shift,
    smoothed,
    soft_cross_entropy,
)
from adctl.classification.classifier import Classifier
from adctl.classification.config import ClassifierConfig
from adctl.classification.dataset import check_contents, digests_of, open_labelled
from adctl.classification.decision import best_f1_threshold, decide, fit_decision, fit_temperature
from adctl.classification.grad_cam import grad_cam
from adctl.classification.header import ClassifierHeader, is_classifier
from adctl.classification.heads import HEADS, HeadTargets
from adctl.classification.model_file import load_classifier, save_classifier
from adctl.classification.objective import Mixing
from adctl.classification.predict import classify_pixels
from adctl.classification.predictions import PredictionSet, predicted_kinds
from adctl.classification.split import hold_out, stratified_folds
from adctl.classification.training.cross_validation import combined
from adctl.classification.training.fitting import classify_features
from adctl.classification.training.train import train_classifier
from adctl.config import ScoreSettings, load
from adctl.engine.batching import to_input
from adctl.errors import DataError, ModelFileError, OutputError, UsageError
from adctl.exporting.export import write_format
from adctl.exporting.graph import read_source
from adctl.metrics.classification import classification_metrics, exact_mcnemar, reliability_bins
from adctl.model_file import load_model
from adctl.records import Sample
from adctl.reporting.classifier_report import write_page
from adctl.runtimes.classifier import open_classifier
from adctl.runtimes.loading import open_runtime
from adctl.scoring.classify import classify_images, with_views
from adctl.tracking import own_files

KINDS = {"dot": 10, "good": 16, "stripe": 8}


def draw(kind: str, seed: int) -> np.ndarray:
    """A grey part, and what is wrong with it."""
    generator = np.random.default_rng(seed)
    image = generator.normal(120, 12, (48, 48)).clip(0, 255).astype(np.uint8)
    x, y = (int(value) for value in generator.integers(12, 36, 2))
    if kind == "dot":
        cv2.circle(image, (x, y), 6, 255, -1)
    if kind == "stripe":
        cv2.line(image, (0, y), (47, y + 4), 0, 3)
    return image


def write_kinds(folder: Path, kinds: dict[str, int], seed: int = 0) -> Path:
    for number, (kind, count) in enumerate(kinds.items()):
        (folder / kind).mkdir(parents=True)
        for index in range(count):
            cv2.imwrite(str(folder / kind / f"{index:03}.png"), draw(kind, 1000 * number + index + seed))
    return folder


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A folder for each kind."""
    return write_kinds(tmp_path_factory.mktemp("data") / "kinds", KINDS)


def classify(data: Path, runs: Path, **values):
    return train_classifier(settings(task="classify", data=data, runs=runs, epochs=None, **values))


@pytest.fixture(scope="module")
def trained(kinds, tmp_path_factory):
    """A trained classifier with cross-validation."""
    options = {"leave_out": ["stripe"]}
    return classify(kinds, tmp_path_factory.mktemp("runs"), balance="weights", folds=2, options=options)


# ---- imbalance and losses


def test_losses_are_those_of_pytorch_and_of_the_papers():
    torch.manual_seed(0)
    logits, labels, weights = torch.randn(9, 4), torch.randint(0, 4, (9,)), torch.rand(4) + 0.5
    ours = soft_cross_entropy(logits, smoothed(labels, 4, 0.1), weights)
    theirs = functional.cross_entropy(logits, labels, weights, reduction="none", label_smoothing=0.1)
    assert torch.allclose(ours, theirs, atol=1e-5)
    shares = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    focal = soft_cross_entropy(logits, smoothed(labels, 4, 0.0), weights, gamma=2.0)
    assert torch.allclose(focal, -weights[labels] * (1 - shares) ** 2 * shares.log(), atol=1e-5)
    assert torch.allclose(prior_shift(np.array([1, 3]), 2.0), torch.tensor([0.25, 0.75]).log() * 2)


def test_the_focal_loss_of_two_kinds_is_that_of_torchvision():
    torch.manual_seed(1)
    logits, labels = torch.randn(12, 2), torch.randint(0, 2, (12,))
    ours = soft_cross_entropy(logits, smoothed(labels, 2, 0.0), torch.ones(2), gamma=1.5)
    theirs = sigmoid_focal_loss(logits[:, 1] - logits[:, 0], labels.float(), alpha=-1, gamma=1.5)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_mixed_targets_with_weights_and_focal_loss_are_those_of_pytorch_and_of_torchvision():
    torch.manual_seed(2)
    logits, labels, weights = torch.randn(8, 3), torch.arange(8) % 3, torch.rand(3) + 0.5
    _, soft = v2.MixUp(alpha=1.0, num_classes=3)(torch.rand(8, 3, 4, 4), labels)
    theirs = functional.cross_entropy(logits, soft, weights, reduction="none")
    assert torch.allclose(soft_cross_entropy(logits, soft, weights), theirs, atol=1e-6)
    pair, shares = logits[:, :2], torch.rand(8, 1)
    ours = soft_cross_entropy(pair, torch.cat([1 - shares, shares], 1), torch.ones(2), gamma=2.0)
    margin = pair[:, 1] - pair[:, 0]
    both = [sigmoid_focal_loss(margin, torch.full((8,), one), alpha=-1, gamma=2.0) for one in (0.0, 1.0)]
    assert torch.allclose(ours, (1 - shares[:, 0]) * both[0] + shares[:, 0] * both[1], atol=1e-6)


def test_weights_are_inverse_to_counts_and_to_effective_numbers():
    counts = np.array([10, 40, 50])
    inverse = class_weights(counts, "weights", 0.9)
    assert np.allclose(inverse, 100 / (3 * counts))  # as scikit-learn's "balanced"
    effective = class_weights(counts, "class-balanced", 0.9)
    expected = 0.1 / (1 - 0.9**counts)
    assert np.allclose(effective / effective[0], expected / expected[0])
    assert np.isclose((effective * counts).sum(), counts.sum())
    assert (class_weights(counts, "none", 0.9) == 1).all()
    with pytest.raises(UsageError, match="too much"):
        class_weights(np.array([1, 10**7]), "weights", 0.9)


@pytest.mark.parametrize(("strategy", "each"), [("oversample", 6), ("undersample", 2)])
def test_sampling_gives_each_kind_the_same_number_of_images(strategy, each):
    labels = np.array([0] * 6 + [1] * 2)
    chosen = balanced_indices(labels, strategy, 3)
    assert (np.bincount(labels[chosen]) == each).all()
    assert (balanced_indices(labels, strategy, 3) == chosen).all()
    assert set(chosen[labels[chosen] == 1]) == {6, 7}


@pytest.mark.parametrize("cutmix", [False, True])
def test_mixed_images_have_the_mixed_labels_of_torchvision(cutmix):
    images, labels = torch.rand(6, 3, 16, 16), torch.arange(6) % 3
    transform = Mixing(*((0.0, 1.0) if cutmix else (1.0, 0.0))).transform(3)
    torch.manual_seed(4)
    mixed, soft = transform(images, smoothed(labels, 3, 0.0))
    torch.manual_seed(4)
    v2.RandomChoice([v2.Identity()])(images)  # draws the same choice
    same, expected = (v2.CutMix if cutmix else v2.MixUp)(alpha=1.0, num_classes=3)(images, labels)
    assert torch.equal(mixed, same)
    assert torch.allclose(soft, expected)
    assert torch.allclose(soft.sum(1), torch.ones(6))


# ---- heads


@pytest.fixture(scope="module")
def clouds():
    generator = np.random.default_rng(1)
    labels = np.repeat(np.arange(3), (30, 20, 10))
    return (generator.normal(0, 1, (60, 8)) + 1.5 * np.eye(3, 8)[labels]).astype(np.float32), labels


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("count", [2, 3])
def test_heads_learn_and_are_the_same_after_loading(name, count, clouds):
    features, labels = (part[clouds[1] < count] for part in clouds)
    config = ClassifierConfig(head=name, regularisation=1.0, trees=20)
    head = HEADS[name](config, count)
    head.fit(features, HeadTargets(labels, np.ones(count), count))
    logits = head(torch.from_numpy(features))
    assert logits.shape == (len(features), count)
    assert (logits.argmax(1).numpy() == labels).mean() > 0.8
    copy = HEADS[name](config, count)
    copy.prepare({f"head.{key}": value for key, value in head.state_dict().items()}, "head.")
    copy.load_state_dict(head.state_dict())
    assert torch.equal(copy(torch.from_numpy(features)), logits)


@pytest.mark.parametrize("name", ["forest", "gradient_boosting"])
def test_trees_give_the_probabilities_of_scikit_learn(name, clouds):
    features, labels = clouds
    config = ClassifierConfig(head=name, trees=15)
    head = HEADS[name](config, 3)
    head.fit(features, HeadTargets(labels, np.ones(3), 3))
    rows = ((features - features.mean(0)) / features.std(0)).astype(np.float32)
    model = (
        RandomForestClassifier(15, min_samples_leaf=2, random_state=0)
        if name == "forest"
        else GradientBoostingClassifier(
            n_estimators=15, max_depth=3, subsample=0.5, max_features="sqrt", init="zero", random_state=0
        )
    )
    wanted = model.fit(rows, labels, np.ones(60)).predict_proba(rows)
    found = softmax(head(torch.from_numpy(features)).numpy().astype(float), 1)
    assert np.allclose(found, wanted, atol=5e-3)


# ---- metrics and decision


def test_metrics_are_those_of_scikit_learn():
    generator = np.random.default_rng(2)
    truth = generator.integers(0, 3, 80)
    shares = softmax(generator.normal(0, 1, (80, 3)) + 1.2 * np.eye(3)[truth], 1)
    called = shares.argmax(1)
    found = classification_metrics(truth, shares, ("a", "b", "c"))
    expected = {
        "accuracy": reference.accuracy_score(truth, called),
        "balanced_accuracy": reference.balanced_accuracy_score(truth, called),
        "mcc": reference.matthews_corrcoef(truth, called),
        "kappa": reference.cohen_kappa_score(truth, called),
        "macro_f1": reference.f1_score(truth, called, average="macro"),
        "weighted_precision": reference.precision_score(truth, called, average="weighted"),
        "macro_auroc": reference.roc_auc_score(truth, shares, multi_class="ovr"),
        "micro_auroc": reference.roc_auc_score(np.eye(3)[truth], shares, average="micro"),
        "weighted_ap": reference.average_precision_score(np.eye(3)[truth], shares, average="weighted"),
        "log_loss": reference.log_loss(truth, shares),
        "top_3_accuracy": 1.0,
    }
    assert {name: found.overall[name] for name in expected} == pytest.approx(expected)
    assert found.confusion == tuple(map(tuple, reference.confusion_matrix(truth, called).tolist()))
    confidence, right = shares.max(1), called == truth
    edges = np.linspace(0, 1, 11)
    bins = [(confidence > low) & (confidence <= high) for low, high in itertools.pairwise(edges)]
    ece = sum(own.mean() * abs(confidence[own].mean() - right[own].mean()) for own in bins if own.any())
    assert found.overall["ece"] == pytest.approx(ece)
    interval = found.kinds[0].recall_interval
    assert interval.low < found.kinds[0].recall < interval.high


def test_the_temperature_has_the_lowest_loss():
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 3, 300)
    logits = 4 * (generator.normal(0, 1, (300, 3)) + np.eye(3)[labels])
    grid = np.exp(np.linspace(-2, 3, 201))
    losses = [reference.log_loss(labels, softmax(logits / one, 1)) for one in grid]
    assert fit_temperature(logits, labels) == pytest.approx(grid[int(np.argmin(losses))], rel=3e-2)


def test_temperature_and_reliability_are_those_of_scikit_learn():
    generator = np.random.default_rng(5)
    labels = generator.integers(0, 3, 200)
    logits = 3 * (generator.normal(0, 1, (200, 3)) + np.eye(3)[labels])
    given = LogisticRegression().fit(logits, labels)
    given.coef_, given.intercept_ = np.eye(3), np.zeros(3)
    scaled = CalibratedClassifierCV(FrozenEstimator(given), method="temperature").fit(logits, labels)
    shares = softmax(logits / fit_temperature(logits, labels), 1)
    assert np.allclose(shares, scaled.predict_proba(logits), atol=2e-3)
    bins = reliability_bins(labels, shares)
    right, confidence = shares.argmax(1) == labels, shares.max(1)
    accuracy, mean = calibration_curve(right, confidence, n_bins=10)
    assert [one.accuracy for one in bins] == pytest.approx(accuracy)
    assert [one.confidence for one in bins] == pytest.approx(mean)


def test_a_thousand_kinds_have_metrics_and_a_page(tmp_path):
    names = tuple(f"kind{number:03}" for number in range(1000))
    generator = np.random.default_rng(6)
    truth = generator.integers(0, 1000, 300)
    logits = generator.normal(0, 1, (300, 1000)) + 5 * np.eye(1000)[truth]
    decision = fit_decision(logits, np.ones(300), truth, 0.95)
    samples = [Sample(Path(f"{number}.png"), f"{number}.png", names[kind]) for number, kind in enumerate(truth)]
    rows = predicted_kinds(samples, decide(decision, logits, np.ones(300)), np.ones(300), names)
    predictions = PredictionSet(names, decision, tuple(rows))
    predictions.save(tmp_path)
    again = PredictionSet.load(tmp_path)
    assert again == predictions
    write_page(again, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("data-kind=") == 900
    assert "970 kinds with fewer mistakes are left out" in page


def test_weights_of_another_width_are_refused():
    classifier = Classifier(ClassifierConfig(backbone="test_resnet", image_size=48, layers=(2, 3)), 3)
    wrong = {name: torch.zeros(*value.shape, 2) for name, value in classifier.backbone.network.state_dict().items()}
    with pytest.raises(ModelFileError, match="do not fit the backbone") as error:
        classifier.load_pretrained(wrong)
    assert "--backbone" in error.value.remedy


def test_known_kinds_are_kept_and_far_images_are_unknown():
    generator = np.random.default_rng(4)
    labels = generator.integers(0, 3, 4000)
    logits = generator.normal(0, 1, (4000, 3)) + 2 * np.eye(3)[labels]
    distances = generator.gamma(4, 1, 4000)
    decision = fit_decision(logits[:2000], distances[:2000], labels[:2000], 0.95)
    named = decide(decision, logits[2000:], distances[2000:])
    assert 0.92 < 1 - named.unknown.mean() < 0.98
    inside = named.sets[np.arange(2000), labels[2000:]]
    assert inside[~named.unknown].mean() > 0.93
    assert decide(decision, logits[:5], distances[:5] + 100).names(("a", "b", "c")) == ["unknown"] * 5


def test_a_threshold_calls_equal_scores_together():
    assert best_f1_threshold(np.array([0.9, 0.6, 0.6, 0.2]), np.array([True, True, False, False])) == 0.6
    assert best_f1_threshold(np.array([0.9, 0.2]), np.array([False, False])) == 1.0


def test_ensembles_combine_probabilities_votes_and_ranks():
    models = [
        np.array([[0.9, 0.1], [0.4, 0.6]]),
        np.array([[0.45, 0.55], [0.3, 0.7]]),
        np.array([[0.45, 0.55], [0.2, 0.8]]),
    ]
    found = combined(models)
    assert found["mean"][0] == pytest.approx([0.6, 0.4])
    assert found["vote"].argmax(1).tolist() == [1, 1]
    assert all(values.sum(1) == pytest.approx([1, 1]) for values in found.values())
    assert exact_mcnemar(np.array([True] * 10), np.array([False] * 10)) == pytest.approx(2 / 1024)


# ---- data of labels


def test_splits_keep_kinds_in_proportion_and_groups_whole(kinds):
    samples = open_labelled(settings(task="classify", data=kinds).settings).train
    grouped = tuple(
        Sample(one.path, one.key, one.label, None, f"{one.label}{number // 2}") for number, one in enumerate(samples)
    )
    digests = digests_of(samples)
    folds = stratified_folds(grouped, digests, 4, 0)
    for kind, count in KINDS.items():
        sizes = np.bincount(folds[[one.label == kind for one in grouped]], minlength=4)
        assert sizes.sum() == count
        assert sizes.max() - sizes.min() <= 2
    for group in {one.group for one in grouped}:
        assert len(set(folds[[one.group == group for one in grouped]])) == 1
    rest, held = hold_out(grouped, digests, 0.25, 0)
    assert not {one.group for one in rest} & {one.group for one in held}
    assert set(KINDS) == {one.label for one in held}


def test_layouts_of_labels(tmp_path, kinds, zippers):
    def opened(path: Path):
        return open_labelled(settings(task="classify", data=path).settings)

    (tmp_path / "split").mkdir()
    (tmp_path / "split" / "train").symlink_to(kinds)
    write_kinds(tmp_path / "split" / "test", dict.fromkeys(KINDS, 2), seed=500)
    split = opened(tmp_path / "split")
    assert (len(split.train), len(split.test)) == (34, 6)
    assert split.classes == ("dot", "good", "stripe")
    pooled = opened(zippers)
    assert not pooled.test
    assert {"good", "broken_teeth"} <= set(pooled.classes)
    for kind in ("cat", "dog"):  # as `adctl fetch cifar10` writes them
        write_kinds(tmp_path / "cifar" / kind / "train", {"good": 3}, seed=len(kind))
        write_kinds(tmp_path / "cifar" / kind / "test", {"good": 2, "dog" if kind == "cat" else "cat": 2}, seed=99)
    natural = opened(tmp_path / "cifar")
    assert natural.classes == ("cat", "dog")
    assert (len(natural.train), len(natural.test)) == (6, 4)
    manifest = tmp_path / "kinds.csv"
    lines = [f"{path},{path.parent.name},train" for path in sorted(kinds.glob("*/*.png"))]
    manifest.write_text("\n".join(["path,label,split", *lines]), encoding="utf-8")
    assert Counter(one.label for one in opened(manifest).train) == KINDS


def broken(folder: Path, how: str) -> Path:
    """A dataset that cannot be used."""
    counts = {"one kind": {"dot": 5}, "one image": {"dot": 5, "good": 1}, "case": {"Dot": 5, "dot": 5}}
    root = write_kinds(folder / "data" / "train", counts.get(how, {"dot": 5, "good": 5})).parent
    if how == "empty folder":
        (root / "train" / "scratch").mkdir()
    if how == "two labels":
        (root / "train" / "good" / "copy.png").write_bytes((root / "train" / "dot" / "000.png").read_bytes())
    if how in ("untrained", "untested"):
        write_kinds(root / "test", {"untrained": {"dot": 2, "good": 2, "new": 2}, "untested": {"dot": 2}}[how], 77)
    if how == "leak":
        write_kinds(root / "test", {"dot": 2, "good": 2})
    return root / "train" if how == "one kind" else root


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("one kind", "images of 1 kind only: dot"),
        ("one image", "too few different training images or groups: good"),
        ("case", "differ in case"),
        ("empty folder", "'scratch' has no images"),
        ("two labels", "same image has two labels"),
        ("untrained", "without training images: new"),
        ("untested", "without test images: good"),
        ("leak", "training images too"),
    ],
)
def test_data_that_cannot_be_used_is_refused(tmp_path, how, message):
    data = broken(tmp_path, how)

    def opened() -> None:
        dataset = open_labelled(settings(task="classify", data=data).settings)
        check_contents(dataset, digests_of((*dataset.train, *dataset.test)))

    with pytest.raises(DataError, match=message) as error:
        opened()
    assert error.value.remedy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "padim"], "--arch belongs to detectors"),
        (["--mixup-alpha", "0.2"], "frozen backbone"),
        (["--balance", "focal"], "takes no --balance focal"),
        (["--epochs", "3"], "no effect on a frozen backbone"),
        (["--set", "fine_tune=last", "--set", "head=forest"], "cannot be trained with the backbone"),
        (["--set", "attention=se"], "add --set fine_tune=last"),
        (["--set", "heads=svm"], "Did you mean 'head'"),
        (["--set", "leave_out=crack"], "no kind 'crack'"),
        (["--balance", "weigths"], "Unknown treatment"),
        (["--weights", "absent.safetensors"], "does not exist"),
    ],
)
def test_settings_that_do_not_fit_are_refused(adctl, kinds, arguments, message):
    result = adctl("train", "--task", "classify", "--data", kinds, *arguments, code=2)
    assert result.returncode == 2
    assert message in result.stderr
    assert not list(adctl.folder.glob("runs/*/model.safetensors"))


# ---- training


def test_a_training_writes_a_tested_model(trained):
    run = trained.run
    assert trained.classes == ("dot", "good")
    assert trained.metrics.overall["accuracy"] > 0.8
    assert trained.unknown.unseen_images == {"stripe": 8}
    with (run / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == trained.test_images + 8
    assert all(row["name"] in ("dot", "good", "unknown") for row in rows)
    assert all(float(row["p(dot)"]) + float(row["p(good)"]) == pytest.approx(1, abs=1e-4) for row in rows)
    assert "macro" in (run / "auc_scores.csv").read_text(encoding="utf-8")
    assert all((run / name).read_bytes()[:5] == b"<?xml" for name in ("roc_curve.svg", "pr_curve.svg"))
    assert [fold.number for fold in trained.folds.folds] == [1, 2]
    assert set(trained.folds.ensembles) == {"mean", "vote", "rank"}
    stored = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert stored["metrics"]["overall"] == trained.metrics.overall


def test_all_files_of_a_training_are_known_as_those_of_adctl(trained):
    assert own_files.foreign_files(trained.run) == ()


def test_a_damaged_test_image_and_a_full_disk_cost_no_model(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OutputError("Cannot write metrics.json: No space left on device.")

    for part, count in (("train", 5), ("test", 2)):
        write_kinds(tmp_path / "data" / part, {"dot": count, "good": count}, seed=100 * count)
    damaged = tmp_path / "data" / "test" / "dot" / "000.png"
    damaged.write_bytes(damaged.read_bytes()[:300])
    monkeypatch.setattr("adctl.classification.training.train.write_results", full)
    result = classify(tmp_path / "data", tmp_path / "runs")
    assert result.model.is_file()
    assert sum(kind.support for kind in result.metrics.kinds) == 3
    assert "000.png" in caplog.text
    assert "No space left" in caplog.text


def test_a_loaded_classifier_gives_the_same(trained, kinds):
    assert is_classifier(trained.model)
    pixels = np.stack([cv2.resize(draw("dot", seed), (64, 64))[..., None].repeat(3, 2) for seed in range(3)])
    first, header = load_classifier(trained.model)
    second, _ = load_classifier(trained.model)
    assert header.classes == ("dot", "good")
    logits, distances = classify_pixels(first, pixels, torch.device("cpu"))
    again = classify_pixels(second, pixels[1:], torch.device("cpu"))
    assert np.allclose(again[0], logits[1:], atol=1e-4)
    assert np.allclose(again[1], distances[1:], rtol=1e-4)
    with pytest.raises(ModelFileError, match="classifier"):
        load_model(trained.model)


def test_predictions_replace_their_own_files_and_no_others(trained, kinds, tmp_path):
    out = tmp_path / "out"
    given = {"images": (str(kinds / "dot"),), "out": out, "runs": tmp_path, "device": "cpu"}
    for _ in range(2):
        assert len(classify_images(load(ScoreSettings, given), trained.model)) == KINDS["dot"]
    for name in ("predictions.csv", "predictions.json"):
        before = (out / name).read_bytes()
        (out / name).write_text("mine")
        with pytest.raises(UsageError, match="adctl did not write it"):
            classify_images(load(ScoreSettings, given), trained.model)
        assert (out / name).read_text() == "mine"
        (out / name).write_bytes(before)
    with pytest.raises(UsageError, match="adctl did not write it"):
        files.require_replaceable([out / "predictions.json"], overwrite=False)


def test_a_stopped_scoring_goes_on_where_it_stopped(trained, kinds, tmp_path, monkeypatch):
    out, seen = tmp_path / "out", []
    given = {"images": (str(kinds),), "out": out, "runs": tmp_path, "device": "cpu", "batch_size": 4}
    settings_of = load(ScoreSettings, given)

    def opened(*arguments, fail_at=None):
        runtime = open_classifier(*arguments)

        def predict(pixels):
            if len(seen) == fail_at:
                raise KeyboardInterrupt
            seen.append(len(pixels))
            return runtime.predict(pixels)

        return replace(runtime, predict=predict, callers=1)

    monkeypatch.setattr("adctl.scoring.classify.open_classifier", partial(opened, fail_at=2))
    with pytest.raises(KeyboardInterrupt):
        classify_images(settings_of, trained.model)
    assert [path.name for path in out.iterdir()] == ["predictions.jsonl"]
    assert len(PredictionSet.load(out).rows) == 8
    with (out / "predictions.jsonl").open("ab") as stream:
        stream.write(b'{"path": "half')  # a killed process can leave half a row
    seen.clear()
    monkeypatch.setattr("adctl.scoring.classify.open_classifier", opened)
    assert len(classify_images(settings_of, trained.model)) == sum(KINDS.values())
    assert sum(seen) == sum(KINDS.values()) - 8
    assert sorted(path.name for path in out.iterdir()) == ["predictions.csv", "predictions.json"]
    whole = classify_images(load(ScoreSettings, given | {"out": tmp_path / "whole"}), trained.model)
    assert [row.name for row in whole] == [row.name for row in PredictionSet.load(out).rows]
    monkeypatch.setattr("adctl.scoring.classify.open_classifier", partial(opened, fail_at=1))
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        classify_images(settings_of, trained.model)  # a complete set is made anew
    seen.clear()
    monkeypatch.setattr("adctl.scoring.classify.open_classifier", opened)
    os.utime(kinds / "dot" / "000.png", (1, 1))
    classify_images(settings_of, trained.model)
    assert sum(seen) == sum(KINDS.values())  # another image is another job
    with files.folder_lock(out, "", ""), pytest.raises(UsageError, match="Another 'adctl score' writes"):
        classify_images(settings_of, trained.model)


def test_a_prediction_that_is_not_finite_is_an_error_row(trained, kinds, tmp_path, monkeypatch):
    def opened(*arguments):
        runtime = open_classifier(*arguments)

        def predict(pixels):
            logits, distances = runtime.predict(pixels)
            logits[0], distances[1] = np.nan, np.inf
            return logits, distances

        return replace(runtime, predict=predict)

    monkeypatch.setattr("adctl.scoring.classify.open_classifier", opened)
    given = {"images": (str(kinds / "dot"),), "out": tmp_path / "out", "runs": tmp_path, "device": "cpu"}
    rows = list(classify_images(load(ScoreSettings, given | {"batch_size": 16}), trained.model))
    assert [row.error is None for row in rows] == [False, False] + [True] * (KINDS["dot"] - 2)
    assert "not a finite number" in rows[0].error


KILLED = """
import json, os, signal, sys
from conftest import ROOT, settings
from adctl.classification.training.train import train_classifier
from adctl.engine.checkpointing import Checkpointer
done = Checkpointer.epoch_done
def killed(self, epoch):
    done(self, epoch)
    if epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)
Checkpointer.epoch_done = killed
train_classifier(settings(**json.loads(sys.argv[1])))
"""


def test_fine_tuning_learns_and_resumes_after_a_kill_as_if_nothing_had_happened(kinds, tmp_path):
    options = {"fine_tune": "last", "attention": "eca", "monitor": "macro_f1"}
    tuned = {"epochs": 3, "batch_size": 8, "balance": "oversample", "mixup_alpha": 0.2, "cutmix_alpha": 0.5}
    tuned |= {"ema": 0.5, "checkpoint_epochs": 1, "tensorboard": False, "options": options, "label_smoothing": 0.1}
    tuned |= {"task": "classify", "data": str(kinds), "runs": str(tmp_path)}
    whole = train_classifier(settings(**tuned, name="whole"))
    assert whole.metrics.overall["accuracy"] > 0.6
    assert len(whole.fit.history) == 3
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    line = [sys.executable, "-c", KILLED, json.dumps({**tuned, "name": "cut"})]
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": threads}
    assert subprocess.run(line, env=environment, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    resumed = train_classifier(settings(**tuned, resume=tmp_path / "cut"))
    assert resumed.fit.resumed_at
    losses = [[one.loss for one in run.fit.history] for run in (whole, resumed)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    first, second = (load_classifier(run.model)[0].state_dict() for run in (whole, resumed))
    torch.testing.assert_close(second, first)


def test_two_processes_tune_as_one_with_the_same_global_batch(kinds, tmp_path):
    tuned = {"epochs": 2, "balance": "oversample", "tensorboard": False, "options": {"fine_tune": "last"}}
    one = train_classifier(settings(task="classify", data=kinds, runs=tmp_path, **tuned, batch_size=8))
    two = train_classifier(settings(task="classify", data=kinds, runs=tmp_path, **tuned, batch_size=4, devices="2"))
    assert two.fit.devices == 2
    assert two.fit.global_batch_size == one.fit.global_batch_size == 8
    assert [epoch.loss for epoch in two.fit.history] == pytest.approx(
        [epoch.loss for epoch in one.fit.history], rel=1e-3
    )
    first, second = (load_classifier(run.model)[0] for run in (one, two))
    torch.testing.assert_close(second.head.weight, first.head.weight, rtol=1e-3, atol=1e-3)


def test_the_command_line_trains_and_plans(adctl, kinds):
    shared = ("train", "--task", "classify", "--data", kinds, "--image-size", "64")
    plan = adctl.json(*shared, "--dry-run")["result"]
    assert plan["images"]["train"]["dot"] + plan["images"]["test"]["dot"] == 10
    done = adctl.json(*shared, "--set", "head=knn", "--name", "kinds")["result"]
    assert Path(adctl.folder / done["model"]).is_file()
    text = adctl("train", "--balance", "weights", "--data", kinds, code=2)
    assert "belongs to classifiers" in text.stderr


# ---- score, report and calibrate


@pytest.fixture(scope="module")
def scored(trained, kinds, tmp_path_factory):
    """Predictions for the images of all kinds, one of which training lacked, and for a file that is no image."""
    folder = tmp_path_factory.mktemp("scored")
    for kind in KINDS:
        (folder / "parts" / kind).mkdir(parents=True)
        for path in sorted((kinds / kind).glob("*.png"))[:3]:
            (folder / "parts" / kind / path.name).write_bytes(path.read_bytes())
    (folder / "parts" / "dot" / "broken.png").write_bytes(b"no image")
    return adctl_package.classify(folder / "parts", model=trained.model, runs=folder, out=folder / "out", device="cpu")


def test_scoring_names_each_image(scored, trained):
    rows = {row.key: row for row in scored}
    assert len(rows) == len(scored) == 10
    assert scored.counts["error"] == 1
    assert "broken.png" in rows["dot/broken.png"].error
    assert scored.metrics.images == 6
    assert scored.unknown.unseen_images == {"stripe": 3}
    with (scored.folder / "predictions.csv").open(encoding="utf-8") as file:
        table = {row["key"]: row for row in csv.DictReader(file)}
    for key, row in rows.items():
        assert table[key]["name"] == (row.name or "")
        assert row.error or sum(row.probabilities) == pytest.approx(1)
        assert row.error or row.probability == max(row.probabilities)
    before = {row.key.rpartition("/")[2]: row for row in PredictionSet.load(trained.run).rows if row.label == "dot"}
    shared = [row for row in scored if row.label == "dot" and row.key.rpartition("/")[2] in before]
    for row in shared:
        assert row.probabilities == pytest.approx(before[row.key.rpartition("/")[2]].probabilities, abs=1e-4)


def test_damaged_predictions_are_told(scored, tmp_path):
    stored = json.loads((scored.folder / "predictions.json").read_text("utf-8"))
    stored["rows"] = stored["rows"][:2]

    def places(value, place=()):
        inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
        for key, one in inner:
            yield (*place, key)
            yield from () if (*place, key)[0] == "manifest" else places(one, (*place, key))

    whole, refused = json.dumps(stored), 0
    for place in [*places(stored), *(("manifest", name) for name in stored["manifest"])]:
        for value in (None, [], {}, "x", -1, 10**400, [[1]], ["dot"]):
            document = json.loads(whole)
            inside = document
            for step in place[:-1]:
                inside = inside[step]
            inside[place[-1]] = value
            (tmp_path / "predictions.json").write_text(json.dumps(document))
            try:
                found = PredictionSet.load(tmp_path)
            except DataError:
                refused += 1
                continue
            assert (found.metrics(), found.unknown(), len(list(found.table()))) is not None
    assert refused > 100


def test_views_are_averaged(trained):
    runtime = open_classifier(trained.model, "cpu")
    height, width, _ = runtime.input.shape
    pixels = np.random.default_rng(0).integers(0, 255, (1, height, width, 3), np.uint8)
    seen = [runtime.predict(part)[0] for part in (pixels, np.ascontiguousarray(pixels[:, :, ::-1]))]
    assert np.allclose(with_views(runtime, ["hflip"]).predict(pixels)[0], np.mean(seen, axis=0), atol=1e-5)


def test_scoring_refuses_what_belongs_to_detectors(adctl, trained, kinds):
    result = adctl("score", kinds / "dot", "--model", trained.model, "--watch", kinds, code=2)
    assert "belongs to detectors" in result.stderr


def test_the_page_shows_matrix_mistakes_and_overlays(scored, adctl):
    result = adctl("report", scored.folder, "--fail-if", "accuracy<0.1", "--json")
    page = Path(json.loads(result.stdout)["result"]["page"]).read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))
    assert sum(row["picture"] is not None for row in data["rows"]) == 9
    assert set(data["curves"]) == {"dot (3)", "good (3)"}
    cells = re.findall(r'data-label="(\w+)" data-kind="(\w+)"[^>]*><span class="count">(\d+)', page)
    counts = {(label, kind): int(count) for label, kind, count in cells}
    assert set(counts) == set(itertools.product(("dot", "good"), repeat=2))
    assert sum(counts.values()) == 6
    for (label, kind), count in counts.items():
        assert count == sum(row["label"] == label and row["kind"] == kind for row in data["rows"])
    adctl("report", scored.folder, "--format", "pdf", code=2)


def test_grad_cam_of_a_linear_head_is_the_class_activation_map(tiny):
    make, pixels = tiny
    classifier, _ = load_classifier(make("linear"))
    classifier.config = classifier.config.model_copy(update={"pool": "mean"})
    head, images = classifier.head, to_input(pixels[:2], torch.device("cpu"))
    width = sum(classifier.backbone.channels)
    for name in ("weight", "mean", "scale"):
        setattr(head, name, getattr(head, name)[..., :width])
    found = grad_cam(classifier, images, torch.tensor([1, 2]))
    with torch.no_grad():
        levels = classifier.backbone(images)
        factors = (head.weight[[1, 2]] / head.scale).split(classifier.backbone.channels, 1)
        size = levels[0].shape[2:]
        shares = [
            (level * own[:, :, None, None]).sum(1, keepdim=True) for level, own in zip(levels, factors, strict=True)
        ]
        resized = [functional.interpolate(one, size, mode="bilinear") for one in shares]
        cam = torch.relu(sum(resized)[:, 0] / (size[0] * size[1]))
    assert torch.allclose(found, cam, atol=1e-6)
    assert grad_cam(load_classifier(make("forest"))[0], images, torch.tensor([1, 2])) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"train": ["a"]}', '{"train": [1], "validation": [], "digests": {}}'])
def test_a_damaged_split_is_told_when_calibrating_anew(tmp_path, text):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(DataError, match=r"split\.json is damaged"):
        check_unseen(tmp_path / "model.safetensors", [])


def test_calibration_anew_keeps_the_network(adctl, tiny, tmp_path):
    make, _ = tiny
    model, out = make("logistic"), tmp_path / "new.safetensors"
    data = write_kinds(tmp_path / "data", dict.fromkeys(KINDS, 9), seed=300)
    adctl("calibrate", "--model", model, "--defects", data, "--max-false-alarm", "0.2", "--out", out)
    before, header = load_classifier(model)
    after, changed = load_classifier(out)
    assert changed.decision.known_share == pytest.approx(0.8)
    assert changed.decision.images == 27
    assert changed.decision != header.decision
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())
    assert "belongs to detectors" in adctl("calibrate", "--model", model, "--percentile", "99", code=2).stderr
    assert "none were given" in adctl("calibrate", "--model", model, code=2).stderr


# ---- exports


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Function that writes a model file of a small classifier with a head, and images for it."""
    folder = tmp_path_factory.mktemp("tiny")
    pixels = np.stack([cv2.cvtColor(draw(kind, seed), cv2.COLOR_GRAY2RGB) for seed in range(8) for kind in KINDS])
    labels = np.tile(np.arange(3), 8)
    shared: dict[str, torch.Tensor] = {}

    def make(head: str) -> Path:
        target = folder / f"{head}.safetensors"
        if target.exists():
            return target
        torch.manual_seed(0)
        config = ClassifierConfig(backbone="test_resnet", image_size=48, head=head, trees=12, layers=(0, 1))
        classifier = Classifier(config, 3).eval()
        with torch.no_grad():
            if not shared:
                shared["features"] = classifier.features(to_input(pixels, torch.device("cpu")))
        features = shared["features"].numpy()
        targets = HeadTargets(labels, np.ones(3), 3)
        classifier.head.fit(features, targets)
        classifier.fit_decision(features, targets)
        decision = fit_decision(*classify_features(classifier, features), labels, 0.95)
        header = ClassifierHeader(config.model_dump(mode="json"), tuple(KINDS), (8, 8, 8), decision, "tiny", "", None)
        save_classifier(target, classifier, header)
        return target

    return make, pixels


FORMATS = [(name, one) for name, spec in EXPORT_FORMATS.items() for one in ("fp32", "int8") if one in spec.precisions]


@pytest.fixture(scope="module", params=HEADS)
def exportable(request, tiny):
    """Model file of a classifier with each head in turn, and the source of its exports."""
    for package in ("onnxruntime", "onnxscript", "openvino"):
        pytest.importorskip(package)
    model = tiny[0](request.param)
    return model, read_source(model)


@pytest.mark.parametrize(("name", "precision"), FORMATS, ids=map("-".join, FORMATS))
def test_every_head_in_every_format_names_kinds_as_pytorch_does(exportable, tiny, name, precision):
    model, source = exportable
    target = model.with_name(f"{model.stem}-{precision}{EXPORT_FORMATS[name].suffix}")
    write_format(name, source, target, precision, list(tiny[1][:, None]))
    assert is_classifier(target)
    reference, runtime = open_classifier(model, "cpu"), open_classifier(target, "cpu")
    assert (runtime.name, runtime.header) == (EXPORT_FORMATS[name].runtime, reference.header)
    new = np.stack([cv2.cvtColor(draw(kind, 99), cv2.COLOR_GRAY2RGB) for kind in KINDS])
    pixels = np.concatenate([tiny[1][:4], new])  # images of the training too, to which neighbours have no distance
    wanted, found = reference.predict(pixels), runtime.predict(pixels)
    decision = reference.header.decision
    before, after = (decide(decision, *output) for output in (wanted, found))
    limit, relative = {"fp32": (1e-4, 1e-4), "int8": (0.1, 1)}[precision]
    assert np.abs(before.probabilities - after.probabilities).max() < limit
    assert np.allclose(found[1], wanted[1], rtol=relative)
    assert (before.kinds == after.kinds).all()
    if precision == "fp32":
        assert (before.unknown == after.unknown)[4:].all()  # a limit is the distance of one image of the training
    for together, alone in zip(found, runtime.predict(pixels[-1:]), strict=True):
        assert np.allclose(alone, together[-1:], rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelFileError, match="names kinds"):
        open_runtime(target, "cpu")


@pytest.mark.parametrize("head", ["knn", "forest"])
def test_probabilities_as_logits_have_no_energy(tiny, head):
    decision = load_classifier(tiny[0](head))[1].decision
    assert decision.energy_limit is None
    logits = np.log(np.full((200, 3), 1 / 3))
    found = decide(fit_decision(logits, np.arange(200.0), np.arange(200) % 3, 0.9), logits, np.arange(200.0))
    assert found.unknown.mean() == pytest.approx(0.1, abs=0.01)  # the distance has the whole share


def test_equal_images_decide_among_neighbours_without_hiding_them(clouds):
    features, labels = clouds
    head = HEADS["knn"](ClassifierConfig(head="knn"), 3)
    head.fit(features, HeadTargets(labels, np.ones(3), 3))
    rows = torch.from_numpy(features)
    noise = 1e-4 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
    assert (head(rows).argmax(1).numpy() == labels).mean() > 0.9
    assert torch.allclose(head(rows + noise), head(rows), atol=1e-2)


def test_bench_measures_a_classifier_and_its_exports(adctl, tiny, tmp_path):
    pytest.importorskip("onnxruntime")
    model = tiny[0]("knn")
    source, exports = read_source(model), [tmp_path / "knn.onnx", tmp_path / "knn.ts"]
    for file, name in zip(exports, ("onnx", "torchscript"), strict=True):
        write_format(name, source, file)
    data = write_kinds(tmp_path / "data", dict.fromkeys(KINDS, 2), seed=600)
    given = ("bench", model, *exports, "--images", data, "--repeats", "4", "--batch-sizes", "1,4", "--workers", "1")
    given = (*given, "--cold-starts", "1", "--device", "cpu", "--out", "a.json", "--markdown", "a.md")
    models = adctl.json(*given, "--fail-if", "p50_ms>1e6")["result"]["models"]
    assert [one["runtime"] for one in models] == ["torch", "onnxruntime", "torchscript"]
    for one in models:
        assert one["host_memory"] > 50 * 2**20
        assert one["from_disk"] > 0
        assert one["cold_start_seconds"] > one["latency_ms"]["p50"] / 1000
    before = json.loads((adctl.folder / "a.json").read_text("utf-8"))
    for one in before["models"]:
        one["latency_ms"]["p50"] /= 1000
        one["noise"] = dict.fromkeys(one["noise"], 3.0)  # machines are shared
    (adctl.folder / "better.json").write_text(json.dumps(before))
    skip = (*given[:3], "--repeats", "4", "--batch-sizes", "4", "--cold-starts", "0", "--against", "better.json")
    done = adctl(*skip, "--markdown", "b.md", code=3)
    assert done.stdout.count("FAILED  p50_ms against baseline") == 2
    page = (adctl.folder / "a.md").read_text("utf-8")
    assert "| peak memory MiB |" in page
    assert not re.search("score|anomal|verdict|AUROC", page)


def test_the_export_is_verified_on_images(adctl, tiny, tmp_path):
    pytest.importorskip("onnxruntime")
    make, _ = tiny
    data = write_kinds(tmp_path / "data", dict.fromkeys(KINDS, 3), seed=400)
    model = make("logistic")
    given = ("export", data, "--model", model, "--out", tmp_path / "out", "--json")
    whole = json.loads(adctl(*given).stdout)["result"]["exports"][0]
    assert whole["check"]["images"] == 9
    assert whole["check"]["changed_verdicts"] == 0
    assert whole["check"]["max_score_difference"] < 1e-3
    text = adctl(*given[:-1], "--overwrite").stdout
    assert all(
        words in text for words in ("probability difference", "distance difference", "changed names", "accuracy")
    )
    assert not re.search("score difference|map|verdict|AUROC", text)
    rows = adctl_package.classify(data, model=whole["file"], runs=tmp_path, out=tmp_path / "names")
    reference = adctl_package.classify(data, model=model, runs=tmp_path, out=tmp_path / "reference")
    assert [row.name for row in rows] == [row.name for row in reference]
