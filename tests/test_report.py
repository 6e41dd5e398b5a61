"""The evaluation against direct computation, and the content of the report page."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from adctl.data.images import write_png
from adctl.errors import DataError, OutputError
from adctl.evaluation.evaluate import evaluate, outcome
from adctl.metrics.bootstrap import Resampling
from adctl.metrics.image import image_metrics
from adctl.records import Calibration, ScoredImage, Verdict
from adctl.reporting.content import ReportOptions, build_content
from adctl.reporting.page import write_report
from adctl.scoring.heatmaps import upsample
from adctl.scoring.score_set import ScoreSet, ScoreWriter

CALIBRATION = Calibration("percentile", 3.0, 2.5, 99.0, 50, 0, 0.02, (1.0, 2.9))
MANIFEST = {
    "started": "2026-01-02T03:04:05+00:00",
    "model": {"path": "runs/my model/model.safetensors", "sha256": "ab" * 32, "arch": "padim", "config": {"rank": 7}},
    "dataset": {"name": "tiles", "category": "zipper"},
    "settings": {"images": {"value": ["parts; rm -rf ~"], "from": "flag"}, "workers": {"value": 2, "from": "default"}},
    "environment": {"adctl": "0.1.0", "openvino": None},
}


class Maker:
    """Builds a scored set image by image, with pictures, masks and maps on disk."""

    def __init__(self, folder: Path, calibration: Calibration | None = CALIBRATION) -> None:
        self.folder = folder
        self.calibration = calibration
        self.rows: list[tuple[ScoredImage, np.ndarray | None]] = []
        self._random = np.random.default_rng(7)

    def add(self, label: str | None, score: float, *, key: str | None = None, size=(40, 48), masked=True, **changes):
        number = len(self.rows)
        path, mask = self.folder / f"{number}.png", None
        write_png(path, self._random.integers(0, 256, (*size, 3), np.uint8))
        values = self._random.gamma(4, 0.3, (8, 8)).astype(np.float32)
        if label not in (None, "good") and masked:
            mask = self.folder / f"{number}_mask.png"
            truth = np.zeros((*size, 3), np.uint8)
            truth[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = 255
            write_png(mask, truth)
            values[2:4, 2:4] += 2
        verdict = self.calibration.verdict(score) if self.calibration else Verdict.UNCALIBRATED
        row = ScoredImage(
            path=str(path),
            key=key or f"test/{label}/{number}.png",
            label=label,
            mask=str(mask) if mask else None,
            score=score,
            threshold=self.calibration.threshold if self.calibration else None,
            verdict=verdict,
            width=size[1],
            height=size[0],
        )
        self.rows.append((dataclasses.replace(row, **changes), values))
        return self

    def error(self, key: str = "test/good/broken.png", reason: str = "it is truncated."):
        row = ScoredImage(key, key, "good", None, None, 3.0, Verdict.ERROR, error=reason)
        self.rows.append((row, None))
        return self

    def scores(self, *, keep_maps: bool = True, manifest: dict | None = None) -> ScoreSet:
        target = self.folder / "scores"
        with ScoreWriter(
            target, MANIFEST if manifest is None else manifest, self.calibration, keep_maps=keep_maps
        ) as w:
            for row, values in self.rows:
                w.add(row, values)
        return ScoreSet.load(target)


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


@pytest.fixture
def labelled(maker: Maker) -> Maker:
    for label, score in [
        ("good", 1.0),
        ("good", 2.0),
        ("good", 3.5),
        ("good", 2.9),
        ("scratch", 4.0),
        ("scratch", 2.0),
    ]:
        maker.add(label, score)
    return maker.add("hole", 5.0).add("hole", 2.95)


def page_of(scores: ScoreSet, **options) -> str:
    target = scores.folder / "report.html"
    assert write_report(scores, evaluate(scores), target, ReportOptions(**options)) == target
    return target.read_text(encoding="utf-8")


def data_of(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def before_scripts(page: str) -> str:
    """What the template wrote; without data, Plotly and the page's own script."""
    return page[: page.index('<script type="application/json"')]


def test_image_metrics_are_those_of_the_labelled_rows(labelled):
    scores = labelled.error().scores()
    found = evaluate(scores)
    rows = [row for row, _ in labelled.rows if row.score is not None]
    values, truth = [row.score for row in rows], [row.label != "good" for row in rows]
    assert found.image == image_metrics(values, truth, 3.0)
    assert set(found.by_defect) == {"hole", "scratch"}
    assert found.by_defect["hole"].defective == 2
    assert found.images == 9
    assert found.verdicts["error"] == 1
    assert "1 of 9 images could not be scored." in found.notes


def test_pixel_metrics_are_those_of_all_pixels_at_the_original_size(labelled):
    scores = labelled.scores()
    found = evaluate(scores).pixel
    values, truth = [], []
    for row, small in labelled.rows:
        values.append(upsample(small, row.height, row.width).ravel())
        mask = cv2.imread(row.mask, cv2.IMREAD_GRAYSCALE) if row.mask else np.zeros((row.height, row.width))
        truth.append((mask > 0).ravel())
    values, truth = np.concatenate(values), np.concatenate(truth)
    called = values > 2.5
    assert found.auroc == pytest.approx(roc_auc_score(truth, values), abs=1e-4)
    assert found.average_precision == pytest.approx(average_precision_score(truth, values), abs=1e-3)
    assert found.iou == pytest.approx((called & truth).sum() / (called | truth).sum(), abs=1e-3)
    assert set(found.by_defect) == {"hole", "scratch"}


def test_a_set_that_does_not_fit_is_measured_in_bins_and_says_how_far_off(labelled, monkeypatch):
    scores = labelled.scores()
    exact = evaluate(scores).pixel
    monkeypatch.setattr("adctl.evaluation.pixels._MAX_EXACT_PIXELS", 1000)
    binned = evaluate(scores).pixel
    assert exact.errors == {}
    for name, error in binned.errors.items():
        assert abs(getattr(binned, name) - getattr(exact, name)) <= error + 1e-9
    assert error < 1e-2
    for name in ("iou", "dice", "region_overlap", "region_iou", "regions"):
        assert getattr(binned, name) == getattr(exact, name)


def test_intervals_come_for_images_defects_and_sizes_when_asked_for(labelled):
    scores = labelled.scores()
    assert evaluate(scores).image.intervals == evaluate(scores).pixel.intervals == {}
    found = evaluate(scores, Resampling(100))
    assert found.resampling == Resampling(100)
    parts = [found.image, *found.by_defect.values(), found.pixel, *found.pixel.by_defect.values()]
    for part in [*parts, *found.pixel.by_size.values()]:
        assert part.intervals["auroc"].low <= part.auroc <= part.intervals["auroc"].high
    assert set(found.pixel.by_size) == {"large"}


def test_too_few_images_for_intervals_are_explained(maker):
    found = evaluate(maker.add("good", 1.0).add("hole", 4.0).scores(), Resampling(100))
    assert found.image.auroc == 1.0
    assert "auroc" not in found.image.intervals
    assert found.pixel.intervals == {}
    assert any("two good and two defective" in note for note in found.notes)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_probability_stands_beside_a_p_value_only_with_labelled_defects(tmp_path, labelled):
    from adctl.records import CalibrationScores
    from adctl.reporting.notable_images import notable_images
    from adctl.thresholds.decision import DecisionRule, fit_probability

    evidence = CalibrationScores((1.0, 1.1, 1.2, 1.3, 1.4, 1.5), defective=(4.0, 5.0, 6.0, 7.0, 8.0) * labelled)
    calibration = dataclasses.replace(CALIBRATION, evidence=evidence, probability=fit_probability(evidence))
    found = DecisionRule(calibration)(9.0)
    assert found.p_value == 1 / 7
    scores = (
        Maker(tmp_path, calibration).add("hole", 9.0, p_value=found.p_value, probability=found.probability).scores()
    )
    (worst,) = notable_images(scores, 5)
    assert "p-value 0.14" in worst.facts
    assert ("probability" in worst.facts) == labelled


def test_intervals_without_width_are_explained(maker):
    for score in (1.0, 2.0):
        maker.add("good", score).add("hole", score + 4)
    notes = evaluate(maker.scores(), Resampling(100)).notes
    assert any("does not mean certainty" in note for note in notes)


def test_scores_are_described_by_class(labelled):
    found = evaluate(labelled.scores())
    assert list(found.distributions) == ["good", "hole", "scratch"]
    assert found.distributions["good"].count == 4
    assert found.effect_size.cliffs_delta == pytest.approx(2 * found.image.auroc - 1)


def test_images_whose_score_is_not_a_number_are_named(labelled):
    scores = labelled.scores()
    odd = dataclasses.replace(scores.rows[-1], score=float("nan"))
    with pytest.raises(DataError, match=re.escape(odd.key)):
        evaluate(dataclasses.replace(scores, rows=(*scores.rows[:-1], odd)))


def test_a_plain_folder_has_no_metrics_and_says_so(maker):
    scores = maker.add(None, 4.0).add(None, 1.0).scores()
    found = evaluate(scores)
    assert found.image.auroc is None
    assert found.pixel is None
    assert found.curves == {}
    assert len(found.notes) == 1
    assert "no image has a label" in found.notes[0].lower()
    page = before_scripts(page_of(scores))
    assert "2 images: 1 rejected, 1 good at threshold 3." in page
    assert 'id="roc"' not in page


def test_one_class_alone_is_explained(maker):
    found = evaluate(maker.add("good", 1.0).add("good", 4.0).scores())
    assert found.image.auroc is None
    assert found.image.false_alarm_rate == 0.5
    assert any("no defective images" in note for note in found.notes)


def test_partly_labelled_sets_say_how_many_count(labelled):
    notes = evaluate(labelled.add(None, 1.0).scores()).notes
    assert "Metrics use only the 8 of 9 images that have a label." in notes


def test_without_maps_the_remedy_is_named(labelled):
    found = evaluate(labelled.scores(keep_maps=False))
    assert found.pixel is None
    assert any("--maps" in note for note in found.notes)


def test_the_size_of_pixel_metrics_is_told_and_can_be_chosen(labelled):
    found = evaluate(labelled.scores())
    small = evaluate(labelled.scores(), pixel_size=32)
    assert found.pixel_resolution == "at 40 x 48 pixels"
    assert small.pixel_resolution == "at 32 x 32 pixels"
    assert small.pixel.aupro != found.pixel.aupro
    cards = build_content(labelled.scores(), small).cards["Pixels"]
    assert all(card.meaning.endswith(", at 32 x 32 pixels") for card in cards)


def test_without_any_mask_there_are_no_pixel_metrics(maker):
    found = evaluate(maker.add("good", 1.0).add("hole", 4.0, masked=False).scores())
    assert found.pixel is None
    assert any("no ground-truth masks" in note for note in found.notes)


def test_unusable_masks_are_left_out_and_named(labelled):
    labelled.add("hole", 4.0, masked=False, key="test/hole/maskless.png")
    labelled.add("hole", 4.0, key="test/hole/gone.png", mask="/nowhere/gone_mask.png")
    labelled.add("hole", 4.0, key="test/hole/other.png", width=47)
    found = evaluate(labelled.scores())
    for name in ("maskless", "gone", "other"):
        assert sum(f"{name}.png" in note for note in found.notes) == 1
    assert found.pixel.images == 8


def test_many_unusable_masks_do_not_flood_the_notes(labelled):
    for _ in range(20):
        labelled.add("hole", 4.0, masked=False)
    notes = evaluate(labelled.scores()).notes
    assert len(notes) == 6
    assert notes[-1].endswith("similar reasons: 15.")


def test_huge_images_are_measured_smaller_and_the_note_says_so(maker):
    scores = maker.add("good", 1.0, size=(30, 2500)).add("hole", 4.0, size=(30, 2500)).scores()
    found = evaluate(scores)
    assert found.pixel.auroc > 0.9
    assert any("pixels: 2." in note and "1024" in note for note in found.notes)


def test_maps_that_are_not_finite_are_a_clear_error(labelled):
    labelled.rows[3][1][0, 0] = np.nan
    with pytest.raises(DataError, match=re.escape(labelled.rows[3][0].key)):
        evaluate(labelled.scores())


def test_an_interrupted_set_says_so(labelled):
    scores = labelled.scores()
    scores = dataclasses.replace(scores, manifest=scores.manifest | {"complete": False})
    assert any("interrupted" in note for note in evaluate(scores).notes)


@pytest.mark.parametrize(
    ("label", "verdict", "expected"),
    [
        ("good", Verdict.GOOD, "passed"),
        ("good", Verdict.REJECT, "false alarm"),
        ("hole", Verdict.GOOD, "missed"),
        ("hole", Verdict.REJECT, "caught"),
        (None, Verdict.GOOD, "unflagged"),
        (None, Verdict.REJECT, "flagged"),
        ("hole", Verdict.UNCALIBRATED, "unjudged"),
        ("hole", Verdict.ERROR, "error"),
    ],
)
def test_outcomes(label, verdict, expected):
    assert outcome(ScoredImage("a", "a", label, None, 1.0, 2.0, verdict)) == expected


def test_the_page_says_the_outcome_in_words(labelled):
    page = before_scripts(page_of(labelled.error().scores()))
    assert "9 images: 4 normal" not in page
    assert "9 images: 3 rejected, 5 good, 1 unreadable; 2 of 4 defects missed, 1 false alarm among 4 good" in page
    assert "at threshold 3." in page


def test_the_page_carries_every_row_with_its_exact_score(labelled):
    labelled.add("good", 0.1 + 0.2)
    data = data_of(page_of(labelled.error().scores()))
    assert [row["score"] for row in data["rows"]] == [row.score for row, _ in labelled.rows]
    assert [row["label"] for row in data["rows"]] == [row.label for row, _ in labelled.rows]
    assert data["threshold"] == 3.0


def test_pictures_hold_original_map_and_overlay(labelled):
    picture = data_of(page_of(labelled.scores()))["rows"][0]["picture"]
    kind, encoded = picture.split(",")
    assert kind == "data:image/jpeg;base64"
    strip = cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR)
    assert strip.shape == (167, 3 * 200 + 2 * 4, 3)


def test_pictures_stay_small_even_of_noise(maker):
    for _ in range(3):
        maker.add("good", 1.0, size=(300, 300))
    for row in data_of(page_of(maker.scores()))["rows"]:
        assert len(row["picture"]) < 18_000


def test_the_worst_mistakes_get_their_picture_first(labelled):
    rows = data_of(page_of(labelled.scores(), gallery_limit=3))["rows"]
    # Missed by most, missed by least, then the false alarm.
    assert [index for index, row in enumerate(rows) if row["picture"]] == [2, 5, 7]


def test_a_limited_gallery_says_so(labelled):
    page = before_scripts(page_of(labelled.scores(), gallery_limit=3))
    assert "pictures of 3 of 8 images" in page
    assert "no longer be read" not in page


def test_vanished_images_have_no_picture_and_a_note(labelled):
    scores = labelled.scores()
    Path(labelled.rows[0][0].path).unlink()
    page = page_of(scores)
    assert data_of(page)["rows"][0]["picture"] is None
    assert data_of(page)["rows"][1]["picture"]
    assert "Images without a picture: 1. They can no longer be read" in before_scripts(page)


def test_without_maps_the_original_is_shown(labelled):
    rows = data_of(page_of(labelled.scores(keep_maps=False)))["rows"]
    assert all(row["picture"] for row in rows)


def test_an_uncalibrated_set_has_a_page(tmp_path):
    scores = Maker(tmp_path, calibration=None).add("good", 1.0).add("hole", 2.0).scores()
    page = page_of(scores)
    assert data_of(page)["threshold"] is None
    assert "There is no threshold." in before_scripts(page)
    assert 'class="confusion"' not in page


def test_a_bare_manifest_will_do(labelled):
    page = before_scripts(page_of(labelled.scores(manifest={})))
    assert "<title>scores</title>" in page


def test_errors_are_listed_with_their_reasons(labelled):
    page = before_scripts(page_of(labelled.error("test/good/x.png", "Cannot use it: it is truncated.").scores()))
    assert re.search(r"<dt>test/good/x\.png</dt><dd>Cannot use it: it is truncated\.</dd>", page)


def test_commands_can_be_pasted_without_harm(labelled):
    page = before_scripts(page_of(labelled.scores()))
    assert "&#39;parts; rm -rf ~&#39; --model &#39;runs/my model/model.safetensors&#39;" in page


def test_the_page_tells_how_it_was_made(labelled):
    page = before_scripts(page_of(labelled.scores(), title="For <you>"))
    for text in (
        "ab" * 32,
        "padim",
        "method percentile 99, from 50 good images",
        "0.1.0",
        "For &lt;you&gt;",
        "2026-01-02",
    ):
        assert text in page
    assert '<th scope="row">openvino' not in page  # the path of the scores may hold the word


HOSTILE = '</script><script>alert(1)</script><!--<img src=x onerror="alert(2)">.png'


def test_hostile_names_stay_text(maker):
    maker.add(HOSTILE, 4.0, key=HOSTILE).add("good", 1.0).error(HOSTILE, HOSTILE)
    scores = maker.scores()
    separated = dataclasses.replace(scores.rows[1], key="line\u2028separator")
    page = page_of(dataclasses.replace(scores, rows=(scores.rows[0], separated, scores.rows[2])), title=HOSTILE)
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "\u2028" not in page
    assert [row["key"] for row in data_of(page)["rows"]] == [HOSTILE, "line\u2028separator", HOSTILE]
    assert page.count("</script>") == 3


def test_the_page_refers_to_nothing_outside(labelled):
    page = before_scripts(page_of(labelled.scores()))
    assert "default-src 'none'" in page
    assert not re.search(r"""(?:src|href)=["']?(?!data:)[^"'\s>]""", page)


def test_an_unwritable_target_is_a_clear_error(labelled, tmp_path):
    scores = labelled.scores()
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError):
        write_report(scores, evaluate(scores), blocked / "report.html")
    assert blocked.read_text() == ""
