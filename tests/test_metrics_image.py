"""Image metrics against scikit-learn and against slow references written from the definitions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as sk

from adctl.errors import DataError
from adctl.metrics.curves import precision_recall_curve, roc_curve
from adctl.metrics.image import image_metrics, image_metrics_by_defect

# A shared machine may stall: no deadline.
few = settings(max_examples=30, deadline=None)


@st.composite
def scored(draw, *, both=False):
    """Scores with many ties, and labels; good and defective ones if `both`."""
    number = draw(st.integers(2, 40))
    values = st.one_of(st.floats(-1e6, 1e6), st.integers(-3, 3).map(float))
    scores = draw(arrays(np.float64, number, elements=values))
    labels = draw(arrays(np.bool_, number))
    if both:
        labels[:2] = [True, False]
    return scores, labels


def best_f1(scores, labels):
    called = [scores >= value for value in np.unique(scores)]
    return max(2 * (c & labels).sum() / (c.sum() + labels.sum()) for c in called)


@few
@given(scored(both=True))
def test_image_ranking_is_scikit_learns(pair):
    scores, labels = pair
    found = image_metrics(scores, labels)
    assert found.auroc == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    assert found.average_precision == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-12)
    assert found.f1_max == pytest.approx(best_f1(scores, labels), abs=1e-12)
    called = [scores >= value for value in np.unique(scores)]
    rates = [c[~labels].mean() for c in called if c[labels].mean() >= 0.95]
    assert found.fpr_at_95_tpr == pytest.approx(min(rates), abs=1e-12)


@few
@given(scored(both=True))
def test_best_f1_is_reached_at_its_threshold(pair):
    scores, labels = pair
    found = image_metrics(scores, labels)
    assert image_metrics(scores, labels, found.f1_max_threshold).f1 == pytest.approx(found.f1_max, abs=1e-12)


def test_best_f1_threshold_parts_neighbouring_floats():
    upper = float(np.nextafter(1.0, 2.0))
    found = image_metrics([1.0, upper], [False, True])
    assert 1.0 <= found.f1_max_threshold < upper


@few
@given(scored(), st.floats(-4, 4))
def test_confusion_numbers_are_scikit_learns(pair, threshold):
    scores, labels = pair
    found = image_metrics(scores, labels, threshold)
    alarms = scores > threshold
    tn, fp, fn, tp = sk.confusion_matrix(labels, alarms, labels=[False, True]).ravel()
    assert (found.tn, found.fp, found.fn, found.tp) == (tn, fp, fn, tp)
    assert (found.good, found.defective) == ((~labels).sum(), labels.sum())
    assert found.accuracy == pytest.approx(sk.accuracy_score(labels, alarms))
    references = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}
    for name, reference in references.items():
        value = getattr(found, name)
        assert (value is None) == (name in found.missing)
        if value is not None:
            assert value == pytest.approx(reference(labels, alarms, zero_division=0))
    if labels.any() and not labels.all():
        assert found.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(labels, alarms))
        assert found.false_alarm_rate == pytest.approx(fp / (fp + tn))


def test_a_score_at_the_threshold_is_normal():
    found = image_metrics([1.0, 2.0], [False, True], 2.0)
    assert (found.tp, found.fn) == (0, 1)


def test_scores_beyond_one_are_ranked_as_they_are():
    assert image_metrics([1e9, 1e9 + 1, -5.0], [False, True, False]).auroc == 1.0


def test_all_ties_rank_at_chance():
    found = image_metrics([3.0] * 6, [True, False] * 3)
    assert (found.auroc, found.average_precision, found.fpr_at_95_tpr) == (0.5, 0.5, 1.0)


@pytest.mark.parametrize(
    ("labels", "said"),
    [([True, True], "no good images"), ([False, False], "no defective images"), ([], "no images")],
)
def test_what_does_not_exist_is_none_and_said_why(labels, said):
    found = image_metrics([1.0, 2.0][: len(labels)], labels, 1.5)
    for name in ("auroc", "average_precision", "f1_max", "f1_max_threshold", "fpr_at_95_tpr", "balanced_accuracy"):
        assert getattr(found, name) is None
        assert said in found.missing[name]


def test_every_none_is_explained():
    for found in (image_metrics([1.0], [True]), image_metrics([], [], 0.0), image_metrics([1.0, 2.0], [0, 1])):
        absent = {name for name, value in vars(found).items() if value is None}
        assert absent - {"threshold"} == set(found.missing)


def test_nan_scores_are_counted():
    with pytest.raises(DataError, match="2 of 3 scores"):
        image_metrics([np.nan, 1.0, np.inf], [True, False, True])
    with pytest.raises(DataError, match="1 of 2 scores"):
        image_metrics_by_defect([np.nan, 1.0], ["good", "good"])


def test_images_without_a_score_are_named():
    names = [f"{number}.png" for number in range(6)]
    with pytest.raises(DataError, match=r"1 of 2 scores are not finite numbers: 1\.png\."):
        image_metrics([0.0, np.nan], [True, False], names=names[:2])
    with pytest.raises(DataError, match=r": 0\.png, 1\.png, 2\.png and 3 more\."):
        image_metrics([np.inf] * 6, [True] * 6, names=names)


def test_scores_without_labels_are_refused():
    with pytest.raises(ValueError, match="one length"):
        image_metrics([1.0, 2.0], [True])


def test_each_defect_stands_against_all_good_images():
    scores, labels = [0.0, 1.0, 2.0, 0.5, 9.0], ["good", "good", "hole", "crack", "crack"]
    found = image_metrics_by_defect(scores, labels, 1.5)
    assert list(found) == ["crack", "hole"]
    assert found["crack"] == image_metrics([0.0, 1.0, 0.5, 9.0], [False, False, True, True], 1.5)
    assert found["hole"].auroc == 1.0
    assert image_metrics_by_defect([], []) == {}


@few
@given(scored(both=True))
def test_curves_hold_their_areas(pair):
    scores, labels = pair
    roc, pr = roc_curve(scores, labels), precision_recall_curve(scores, labels)
    assert sk.auc(roc.x, roc.y) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-9)
    assert -np.diff(pr.x) @ pr.y[:-1] == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-9)
    for curve in (roc, pr):
        assert len(curve.x) == len(curve.y) == len(curve.thresholds)
        assert json.dumps(curve.to_dict(), allow_nan=False)


@pytest.mark.parametrize("curve", [roc_curve, precision_recall_curve])
@pytest.mark.parametrize("labels", [[True, True], [False, False]])
def test_a_curve_needs_both_classes(curve, labels):
    with pytest.raises(DataError, match="there are no"):
        curve([1.0, 2.0], labels)


@few
@given(scored(), st.sampled_from([None, 0.0, np.inf, np.nan]))
def test_dictionaries_are_json(pair, threshold):
    text = json.dumps(image_metrics(*pair, threshold).to_dict(), allow_nan=False)
    assert json.loads(text)["good"] == (~pair[1]).sum()
