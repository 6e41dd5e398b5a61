"""Detectors that are fitted in one pass learn from all good images; each is scored as if it had been left out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pictures_of, settings

from adctl.calibration.calibrate import calibrate
from adctl.config import CalibrateSettings, LoadedSettings, TrainSettings, names_of
from adctl.data.folds import assign_folds
from adctl.data.split import ranked_units, split_good
from adctl.detectors.components.shared_feature_cache import shared_features
from adctl.detectors.registry import detector_class
from adctl.engine.batching import to_input
from adctl.engine.context import FitContext
from adctl.engine.history import FitSettings
from adctl.engine.trainer import FitJob, fit
from adctl.errors import UsageError
from adctl.model_file import read_header
from adctl.records import Sample
from adctl.thresholds import conformal, smooth_tail
from adctl.training import out_of_fold
from adctl.training.plan import plan_training
from adctl.training.single_run import train_once

CPU = torch.device("cpu")


class Pictures:
    """Images in memory, as the trainer wants them."""

    def __init__(self, values) -> None:
        self.values = values

    def __len__(self):
        return len(self.values)

    def name(self, index):
        return str(index)

    def batches(self, size, order=None):
        assert order is None
        for start in range(0, len(self), size):
            yield self.values[start : start + size]


@pytest.fixture(scope="module")
def pixels(zippers) -> np.ndarray:
    images = pictures_of(zippers / "train" / "good", 64)
    return (255 * images).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)


def fitted(arch: str, pixels: np.ndarray, **options):
    """Fit a detector on images [B,H,W,3]."""
    cls = detector_class(arch)
    torch.manual_seed(0)
    detector = cls(cls.Config(image_size=64, **options))
    fit(FitJob(detector, Pictures(pixels), None, FitSettings(batch_size=4), CPU, FitContext()))
    return detector


MASKED = {"resize": "pad", "margin": "masked"}


def margins(pixels: np.ndarray) -> np.ndarray:
    """Add a mask plane, in which every third image is narrow and a few are low."""
    mask = np.full_like(pixels[..., :1], 255)
    mask[::3, :, 40:] = 0
    mask[1::8, :16] = 0
    return np.concatenate([pixels, mask], -1)


@pytest.mark.parametrize(
    ("arch", "options", "count", "together"),
    [
        *(("padim", {}, *sizes) for sizes in ((8, 1), (20, 1), (20, 2))),
        *(("patchcore", {"coreset_ratio": 0.1}, *sizes) for sizes in ((8, 1), (20, 1), (20, 2))),
        ("padim", MASKED, 20, 1),
        ("padim", MASKED, 20, 2),
        ("patchcore", {"coreset_ratio": 0.1, **MASKED}, 20, 1),
        ("patchcore", {"coreset_ratio": 0.1, "search": "ivf", "probes": 3}, 20, 1),
    ],
)
def test_an_image_left_out_scores_as_by_a_detector_fitted_without_it(pixels, arch, options, count, together):
    pixels = margins(pixels) if "margin" in options else pixels
    images = to_input(pixels[:count], CPU)
    ratios = []
    with shared_features(), torch.inference_mode():
        whole = fitted(arch, pixels[:count], **options)
        for start in range(0, 8, together):
            left = list(range(start, start + together))
            truth = fitted(arch, np.delete(pixels[:count], left, 0), **options)(images[left])
            found = whole.held_out(images[left], left, together)
            assert found.maps.shape == truth.maps.shape
            assert (found.scores > whole(images[left]).scores).all(), "an image that was learned from scores lower"
            if together == 1 and start + 1 < count:
                pair = whole.held_out(images[start : start + 2], [start, start + 1])
                torch.testing.assert_close(pair.scores[:1], found.scores, rtol=1e-4, atol=1e-4)
            ratios += (found.scores / truth.scores).tolist()
    # The few features of a small coreset vary from fit to fit, so single images of PatchCore differ both ways.
    assert 0.99 < np.mean(ratios) < (1.06 if arch == "padim" else 1.12)
    assert min(ratios) > (1.0 if arch == "padim" else 0.85)


def test_only_a_fresh_fit_of_the_right_kind_leaves_images_out(patchcore, pixels):
    from adctl.model_file import load_model

    assert not load_model(patchcore.model)[0].can_hold_out()
    assert not fitted("padim", pixels[:8], covariance="shared").can_hold_out()


@pytest.mark.parametrize("arch", ["padim", "patchcore"])
def test_all_tiles_of_an_image_are_left_out_together(zippers, tmp_path, monkeypatch, arch):
    options = {"tile": 64, **({"coreset_ratio": 0.05} if arch == "patchcore" else {})}
    given = settings(arch=arch, data=zippers, runs=tmp_path, options=options)
    exact = train_once(given).calibration.evidence
    assert exact.folds == len(exact.good) == 20
    monkeypatch.setattr("adctl.training.out_of_fold.units_to_hold_out", lambda *_: [])
    refitted = train_once(given).calibration.evidence
    assert np.median(exact.good) == pytest.approx(np.median(refitted.good), rel=0.08)


@pytest.mark.parametrize("arch", ["padim", "patchcore"])
def test_training_learns_from_all_images_and_calibrates_on_all(zippers, tmp_path, arch):
    result = train_once(settings(arch=arch, data=zippers, runs=tmp_path))
    assert result.images == result.calibration.good_images == 20
    evidence = result.calibration.evidence
    assert evidence.folds == 20
    assert len(evidence.peaks) == 20
    assert (result.calibration.method, result.calibration.level) == ("smooth", 0.01)
    low, high = result.calibration.false_alarm_interval
    assert low < 0.01 < high
    manifest = json.loads((result.run / "run.json").read_text(encoding="utf-8"))
    assert manifest["split"] == {"train": 20, "validation": 0, "calibration": 0}
    assert manifest["calibration"]["evidence"]["folds"] == 20


def test_a_detector_that_cannot_leave_images_out_is_fitted_again_for_each_fold(zippers, tmp_path, monkeypatch):
    exact = train_once(settings(arch="patchcore", data=zippers, runs=tmp_path))
    monkeypatch.setattr("adctl.training.out_of_fold.units_to_hold_out", lambda *_: [])
    refitted = train_once(settings(arch="patchcore", data=zippers, runs=tmp_path))
    assert refitted.calibration.evidence.folds == 10
    assert refitted.calibration.good_images == 20
    assert refitted.sha256 != exact.sha256  # the thresholds differ, the tensors do not
    medians = [np.median(one.calibration.evidence.good) for one in (exact, refitted)]
    assert medians[0] == pytest.approx(medians[1], rel=0.05)


def test_a_given_share_is_held_out_and_gradient_training_holds_out_anyway(zippers, tmp_path):
    plain = train_once(settings(arch="padim", data=zippers, runs=tmp_path, calibration_share=0.25))
    assert (plain.images, plain.calibration.good_images, plain.calibration.evidence.folds) == (15, 5, 0)
    plan = plan_training(settings(arch="resnet", data=zippers).settings)
    assert (len(plan.split.train), len(plan.split.validation), len(plan.split.calibration)) == (14, 2, 4)


def samples_of(folder: Path, contents) -> list[Sample]:
    made = []
    for number, content in enumerate(contents):
        path = folder / f"{number}.png"
        path.write_text(str(content), encoding="ascii")
        made.append(Sample(path, path.name))
    return made


class Yielding:
    """Stands for a detector that can leave images out."""

    def __init__(self, *, tiled: bool = False) -> None:
        self.input = type("Input", (), {"tiled": tiled})()

    def can_hold_out(self) -> bool:
        return True


def test_copies_and_groups_are_left_out_together(tmp_path):
    samples = samples_of(tmp_path, [*range(20), 3, 4])
    split = split_good(samples, calibration=0.0, validation=0.0, seed=0)
    units = out_of_fold.units_to_hold_out(Yielding(), split)
    assert sorted(len(unit) for unit in units) == [1] * 18 + [2] * 2
    assert not out_of_fold.units_to_hold_out(Yielding(tiled=True), split)
    grouped = [replace(sample, group=f"lot{number % 4}") for number, sample in enumerate(samples)]
    split = split_good(grouped, calibration=0.0, validation=0.0, seed=0)
    assert not out_of_fold.units_to_hold_out(Yielding(), split), "a lot is too large to be left out in closed form"
    folds = out_of_fold.folds_to_refit(split)
    assert len(folds) == len(ranked_units(grouped, split.digests))


def loaded(model: Path, **values) -> LoadedSettings[CalibrateSettings]:
    given = CalibrateSettings(model=model, runs=model.parent.parent, device="cpu", **values)
    return LoadedSettings(given, dict.fromkeys(names_of(CalibrateSettings), "test"))


def test_calibrate_uses_the_stored_scores_and_says_what_other_views_need(patchcore, tmp_path):
    run = tmp_path / "runs" / "line"
    shutil.copytree(patchcore.run, run)
    model = run / "model.safetensors"
    made = calibrate(loaded(model, max_false_alarm=0.1)).calibration
    assert made.evidence == read_header(model).calibration.evidence
    assert made.promised_false_alarm == pytest.approx(2 * 2 / 21)
    assert made.expected_false_alarm <= 0.1
    with pytest.raises(UsageError, match="learned from all good images") as caught:
        calibrate(loaded(model, tta="hflip"))
    assert "--folds 5" in caught.value.remedy


def test_settings_of_before_keep_their_split():
    assert TrainSettings().calibration_share is None
    assert TrainSettings(calibration_share=0.2).calibration_share == 0.2


def false_alarms(count: int, folds: int, choose, trials: int, distance: str) -> np.ndarray:
    """Return the false-alarm rate of each trial, for detectors fitted on random features, with the package's folds."""
    samples = [Sample(Path(str(number)), str(number)) for number in range(count)]
    digests = {sample.key: sample.key for sample in samples}
    fold_of = np.empty(count, int)
    parts = ranked_units(samples, digests) if folds == count else assign_folds(samples, digests, folds)
    for number, part in enumerate(parts):
        fold_of[[int(sample.key) for sample in part]] = number
    rates = []
    for trial in range(trials):
        random = np.random.default_rng(trial)
        points = random.normal(size=(count + 100, 4)) * random.gamma(4, size=(count + 100, 1))
        good, new = points[:count], points[count:]
        if distance == "nearest":
            apart = np.linalg.norm(good[:, None] - good[None], axis=-1)
            apart[fold_of[:, None] == fold_of[None]] = np.inf
            scores, unseen = apart.min(1), np.linalg.norm(new[:, None] - good[None], axis=-1).min(1)
        else:
            scores = np.empty(count)
            for number in range(max(fold_of) + 1):
                scores[fold_of == number] = mahalanobis(good[fold_of != number], good[fold_of == number])
            unseen = mahalanobis(good, new)
        rates.append(np.mean(unseen > choose(scores).value))
    return np.array(rates)


def mahalanobis(good, others) -> np.ndarray:
    covariance = np.cov(good.T) + 0.01 * np.eye(good.shape[1])
    offsets = others - good.mean(0)
    return np.sqrt(((offsets @ np.linalg.inv(covariance)) * offsets).sum(1))


@pytest.mark.parametrize("distance", ["nearest", "gaussian"])
@pytest.mark.parametrize(("count", "trials"), [(20, 200), (50, 100)])
def test_the_bound_of_scores_out_of_fold_holds_and_the_rate_is_usual(distance, count, trials):
    for folds in (count, 5):
        found = false_alarms(count, folds, lambda scores: conformal.by_false_alarm(scores, 0.1), trials, distance)
        bound = conformal.cross_conformal_bound(conformal.guaranteed_rate(count, 0.1), count, folds)
        assert found.mean() <= bound
        assert found.mean() <= 0.1 + 4 * found.std() / np.sqrt(trials)
    smooth = false_alarms(count, count, lambda scores: smooth_tail.by_smooth_tail(scores, 0.01), trials, distance)
    assert smooth.mean() < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("distance", ["nearest", "gaussian"])
@pytest.mark.parametrize("count", [20, 50, 200])
def test_the_bound_holds_in_a_thousand_draws(distance, count):
    found = false_alarms(count, count, lambda scores: conformal.by_false_alarm(scores, 0.05), 1000, distance)
    rate = conformal.guaranteed_rate(count, 0.05)
    assert found.mean() <= conformal.cross_conformal_bound(rate, count, count)
    assert found.mean() <= rate + 4 * found.std() / np.sqrt(1000)
    smooth = false_alarms(count, count, lambda scores: smooth_tail.by_smooth_tail(scores, 0.01), 1000, distance)
    assert 0.003 < smooth.mean() < 0.022
