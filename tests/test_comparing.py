"""`adctl report A B C`: matching of images, statistics, the page and the animation."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_report_formats import check_latex

import adctl as package
from adctl.config import ReportSettings, load
from adctl.data.images import write_png
from adctl.errors import DataError, UsageError
from adctl.evaluation.compare import compare_sets
from adctl.evaluation.match_images import match_images
from adctl.metrics.bootstrap import Resampling
from adctl.metrics.comparison import delong, holm
from adctl.metrics.image import image_metrics
from adctl.records import Calibration, ScoredImage, Verdict
from adctl.reporting.animation import write_animation
from adctl.reporting.compare import compare
from adctl.reporting.comparison_page import defect_rows, metric_rows, summarise
from adctl.reporting.report import report
from adctl.scoring.score_set import ScoreSet, ScoreWriter

CALIBRATION = Calibration("percentile", 1.0, 1.0, 99.0, 50, 0, 0.02, (0.0, 0.9))
FEW = Resampling(200)
LABELS = ["good"] * 12 + ["hole"] * 6 + ["scratch"] * 6


def make_images(folder: Path, count: int = len(LABELS)) -> list[Path]:
    random = np.random.default_rng(0)
    paths = [folder / "images" / f"{number:02}.png" for number in range(count)]
    for number, path in enumerate(paths):
        pixels = random.integers(60, 90, (24, 32, 3), np.uint8)
        pixels[0, 0] = number
        write_png(path, pixels)
        if number >= LABELS.count("good"):
            mask = np.zeros((24, 32, 3), np.uint8)
            mask[4:10, 6:14] = 255
            write_png(folder / "masks" / path.name, mask)
    return paths


def write_set(folder, paths, seed, *, arch="padim", skill=1.0, calibration=CALIBRATION, labels=LABELS, maps=True):
    """Scores of these images: defects lie `skill` above good ones."""
    random = np.random.default_rng(seed)
    manifest = {"model": {"arch": arch, "path": str(folder / arch / "model.safetensors")}, "seconds": 2.0}
    with ScoreWriter(folder, manifest, calibration, keep_maps=maps) as writer:
        for number, (path, label) in enumerate(zip(paths, labels, strict=False)):
            bad = LABELS[number] != "good"
            score = float(random.normal(0.3 + skill * bad, 0.4))
            mask = path.parent.parent / "masks" / path.name if bad and label is not None else None
            row = ScoredImage(
                path=str(path),
                key=f"{label}/{path.name}",
                label=label,
                mask=str(mask) if mask else None,
                score=score,
                threshold=calibration.threshold if calibration else None,
                verdict=calibration.verdict(score) if calibration else Verdict.UNCALIBRATED,
                width=32,
                height=24,
            )
            values = random.random((6, 8)).astype(np.float32)
            if bad:
                values[1:3, 1:4] += skill
            writer.add(row, values)
    return ScoreSet.load(folder)


@pytest.fixture
def paths(tmp_path):
    return make_images(tmp_path)


@pytest.fixture
def sets(tmp_path, paths):
    return [
        write_set(tmp_path / "a", paths, 1, arch="padim", skill=1.5),
        write_set(tmp_path / "b", paths[::-1], 2, arch="patchcore", labels=LABELS[::-1]),
        write_set(tmp_path / "c", paths, 3, arch="cnn", skill=0.0),
    ]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_its_definition(values):
    corrected = holm(values)
    order = sorted(range(len(values)), key=lambda place: values[place])
    for rank, place in enumerate(order):
        expected = max((len(values) - step) * values[order[step]] for step in range(rank + 1))
        assert corrected[place] == pytest.approx(min(1.0, expected))


def test_images_are_matched_by_their_bytes_whatever_the_order_and_the_name(tmp_path, paths):
    one = write_set(tmp_path / "a", paths, 1)
    copies = [Path(shutil.copy(path, tmp_path / f"copy-{path.name}")) for path in reversed(paths)]
    two = write_set(tmp_path / "b", copies, 2, labels=[None] * len(copies))
    shared = match_images([one, two])
    names = [[Path(row.path).name.removeprefix("copy-") for row in each.rows] for each in shared.sets]
    assert names[0] == names[1] == [path.name for path in paths]
    assert [row.label for row in shared.sets[1].rows] == LABELS  # the other set knows
    assert shared.notes == ()
    stored = dict(two.maps())
    for index, anomaly_map in shared.sets[1].maps():
        np.testing.assert_array_equal(anomaly_map, stored[len(paths) - 1 - index])


def test_same_names_of_other_images_do_not_match(tmp_path, paths):
    one = write_set(tmp_path / "a", paths, 1)
    others = [tmp_path / "other" / path.name for path in paths]
    for path in others:
        write_png(path, np.full((24, 32, 3), 7, np.uint8))
    with pytest.raises(UsageError, match="no image in common") as caught:
        match_images([one, write_set(tmp_path / "b", others, 2)])
    assert "adctl score" in caught.value.remedy


def test_identical_copies_are_told_apart(tmp_path, paths):
    shutil.copy(paths[0], paths[1])
    shared = match_images([write_set(tmp_path / name, paths, seed) for name, seed in (("a", 1), ("b", 2))])
    assert len(shared.sets[0].rows) == len(paths)


def test_only_the_common_images_count_and_the_notes_say_so(tmp_path, paths):
    one = write_set(tmp_path / "a", paths, 1)
    two = write_set(tmp_path / "b", paths[3:20], 2, labels=LABELS[3:20])
    shared = match_images([one, two])
    assert [len(each.rows) for each in shared.sets] == [17, 17]
    assert "17 images" in shared.notes[0]
    assert "24, 17" in shared.notes[0]


def test_gone_files_are_matched_by_name_and_size(tmp_path, paths):
    one, two = (write_set(tmp_path / name, paths, seed) for name, seed in (("a", 1), ("b", 2)))
    paths[5].unlink()
    shared = match_images([one, two])
    assert len(shared.sets[0].rows) == len(paths)
    assert "matched by name and size" in shared.notes[0]


def test_contradicting_labels_are_left_out_of_the_metrics(tmp_path, paths):
    one = write_set(tmp_path / "a", paths, 1)
    two = write_set(tmp_path / "b", paths, 2, labels=["hole", *LABELS[1:]])
    shared = match_images([one, two])
    assert shared.sets[0].rows[0].label is None
    assert "different labels in different sets: 1." in shared.notes[0]


def test_numbers_are_those_of_the_sets_themselves(sets):
    found = compare_sets(match_images(sets), FEW)
    assert [one.name for one in found.sets] == ["padim", "patchcore", "cnn"]
    for one, scores in zip(found.sets, sets, strict=True):
        alone = image_metrics(
            [row.score for row in scores.rows],
            [row.label != "good" for row in scores.rows],
            scores.calibration.threshold,
        )
        assert one.image.auroc == pytest.approx(alone.auroc)
        assert one.image.recall == alone.recall
        assert one.pixel is not None
        assert one.images_per_second == 12.0
    first = found.pairs[0]
    by_path = [{row.path: row.score for row in scores.rows} for scores in sets[:2]]
    order = [row.path for row in sets[0].rows]
    expected = delong(*([scores[path] for path in order] for scores in by_path), [label != "good" for label in LABELS])
    assert first.metrics["image_auroc"].p_value == pytest.approx(expected.p_value)
    assert {"pixel_auroc", "pixel_aupro", "image_f1"} <= set(first.metrics)


def test_p_values_are_corrected_over_the_pairs(sets):
    found = compare_sets(match_images(sets), FEW)
    assert len(found.pairs) == 3
    for name in ("image_auroc", "pixel_aupro"):
        raw = [pair.metrics[name].p_value for pair in found.pairs]
        assert [pair.corrected[name] for pair in found.pairs] == pytest.approx(holm(raw))


def test_a_set_does_not_differ_from_itself_scored_again(tmp_path, paths):
    one = write_set(tmp_path / "a", paths, 1)
    two = write_set(tmp_path / "b", paths, 1, arch="again")
    found = compare_sets(match_images([one, two]), FEW)
    assert found.disagreements == ()
    assert all(test.difference == 0 for test in found.pairs[0].metrics.values())
    assert all(value == 1 for value in found.pairs[0].corrected.values())


def test_disagreements_are_the_images_ranked_most_differently(sets):
    found = compare_sets(match_images(sets), FEW)
    split = [len({verdict is Verdict.REJECT for verdict in one.verdicts}) > 1 for one in found.disagreements]
    assert split == sorted(split, reverse=True)
    spreads = [one.spread for one, differs in zip(found.disagreements, split, strict=True) if differs]
    assert spreads == sorted(spreads, reverse=True)
    judged = found.pairs[0].judgements
    assert judged.both + judged.first + judged.second + judged.neither == len(LABELS)
    for one in found.disagreements:
        right = [
            name
            for name, verdict in zip(("padim", "patchcore", "cnn"), one.verdicts, strict=True)
            if (verdict is Verdict.REJECT) == (one.label != "good")
        ]
        assert list(one.right) == right


def test_sets_without_labels_thresholds_or_maps_are_compared_as_far_as_possible(tmp_path, paths):
    bare = {"labels": [None] * len(paths), "calibration": None, "maps": False}
    found = compare_sets(
        match_images([write_set(tmp_path / "a", paths, 1, **bare), write_set(tmp_path / "b", paths, 2, **bare)]), FEW
    )
    assert found.pairs[0].metrics == {}
    assert found.pairs[0].judgements is None
    assert [one.name for one in found.sets] == ["a", "b"]  # both are padim
    assert any("No image has a label" in note for note in found.notes)
    assert metric_rows(found) == []
    assert "24 images" in summarise(found)


def test_one_class_is_said(tmp_path, paths):
    good = ["good"] * len(paths)
    sets = [write_set(tmp_path / name, paths, seed, labels=good, arch=name) for name, seed in (("a", 1), ("b", 2))]
    found = compare_sets(match_images(sets), FEW)
    assert found.pairs[0].metrics == {}
    assert any("good or all are defective" in note for note in found.notes)


def test_names_stay_different(sets):
    again = [replace(one, manifest={**one.manifest, "model": {}}) for one in sets]
    assert [one.name for one in compare_sets(match_images(again), FEW).sets] == ["a", "b", "c"]


def test_command_line_writes_page_and_animation(adctl, sets):
    folders = [one.folder for one in sets]
    document = adctl.json("report", *folders, "--animation", "maps.gif", "--ci-samples", "200", "--title", "A & B")
    result = document["result"]
    assert result["page"] == str(folders[0] / "comparison.html")
    page = (folders[0] / "comparison.html").read_text(encoding="utf-8")
    assert "<h1>A &amp; B</h1>" in page
    assert [one["name"] for one in result["comparison"]["sets"]] == ["padim", "patchcore", "cnn"]
    assert json.dumps(result["comparison"]["pairs"][0]["corrected"])
    assert frames(adctl.folder / "maps.gif") >= len(folders)


def frames(path: Path) -> int:
    with Image.open(path) as moving:
        return moving.n_frames


@pytest.mark.parametrize("ending", ["webp", "png", "apng"])
def test_other_moving_pictures(sets, tmp_path, ending):
    shared = match_images(sets)
    found = compare_sets(shared, Resampling(20))
    target = write_animation(shared.sets, found, tmp_path / f"maps.{ending}")
    assert frames(target) == len(sets) * min(8, len(found.disagreements))


def test_equal_models_have_no_best(tmp_path):
    paths = make_images(tmp_path)
    equal = match_images([write_set(tmp_path / name, paths, 1, arch=name, skill=9) for name in ("padim", "patchcore")])
    said = summarise(compare_sets(equal, FEW))
    assert said == "On 24 images, padim and patchcore have the same image AUROC: 1.000."


def test_command_line_says_it_in_words(adctl, sets):
    done = adctl("report", *(one.folder for one in sets), "--out", "page.html", "--ci-samples", "200")
    assert "padim has the highest image AUROC" in done.stdout
    assert "p, Holm" in done.stdout
    assert (adctl.folder / "page.html").is_file()


def test_scoring_records_how_long_it_took(zippers, patchcore, tmp_path):
    package.score(model=patchcore.model, images=[str(zippers / "test/good")], out=tmp_path / "scores", heatmaps=False)
    assert ScoreSet.load(tmp_path / "scores").manifest["seconds"] > 0


def test_refusals(adctl, sets, tmp_path):
    first, second = sets[0].folder, sets[1].folder

    def refused(*folders, **values):
        compare(load(ReportSettings, {"scores": folders, **values}))

    with pytest.raises(UsageError, match="named twice"):
        refused(first, first)
    with pytest.raises(UsageError, match="at least two scored sets"):
        refused(first)
    with pytest.raises(UsageError, match="holds no scores"):
        refused(first, tmp_path)
    with pytest.raises(UsageError, match="not an animation format"):
        refused(first, second, animation="x.mp4")
    with pytest.raises(UsageError, match="only one scored set"):
        report(load(ReportSettings, {"scores": first, "animation": "x.gif"}))
    assert "named twice" in adctl("report", first, first, code=2).stderr


def test_settings_of_a_single_report_are_refused_not_ignored(sets):
    loaded = load(ReportSettings, {"scores": [one.folder for one in sets], "contact_sheet": Path("sheet.png")})
    with pytest.raises(UsageError, match="--contact-sheet is for one scored set"):
        compare(loaded)


def test_nothing_to_animate_is_an_error_with_a_remedy(tmp_path, paths):
    sets = [write_set(tmp_path / name, paths, seed, maps=False) for name, seed in (("a", 1), ("b", 2))]
    loaded = load(ReportSettings, {"scores": [one.folder for one in sets], "animation": tmp_path / "x.gif"})
    with pytest.raises(DataError, match="nothing to animate") as caught:
        compare(loaded)
    assert "--maps" in caught.value.remedy


def test_from_python(sets, tmp_path):
    made = package.compare(scores=[one.folder for one in sets], out=tmp_path / "c.html", ci_samples=200)
    assert made.page == tmp_path / "c.html"
    assert made.comparison.images == len(LABELS)
    with pytest.raises(UsageError, match="one scored set"):
        package.report(scores=[one.folder for one in sets])
    assert package.report(scores=sets[0].folder, out=tmp_path / "r.html").page.is_file()


def test_packages_do_not_take_the_place_of_the_functions_of_their_names():
    for name in package.__all__:
        assert not isinstance(getattr(package, name), ModuleType), name
    for name in ("bench", "calibrate", "compare", "export", "report", "score", "train"):
        assert callable(getattr(package, name)), name


def test_settings_take_one_folder_or_several(monkeypatch):
    assert load(ReportSettings, {"scores": "a"}).settings.scores == (Path("a"),)
    monkeypatch.setenv("ADCTL_SCORES", "b")
    assert load(ReportSettings, {}).settings.scores == (Path("b"),)


def test_each_defect_type_is_compared_as_if_it_were_alone(sets):
    found = compare_sets(match_images(sets), FEW)
    rows = {(row["defect"], row["name"]): row["cells"] for row in defect_rows(found)}
    assert {kind for kind, _ in rows} == {"hole", "scratch"}
    for kind in ("hole", "scratch"):
        for number, scores in enumerate(sets):
            own = [row for row in scores.rows if row.label in ("good", kind)]
            expected = image_metrics([row.score for row in own], [row.label == kind for row in own], 1.0)
            assert rows[kind, "image AUROC"][number]["value"] == f"{expected.auroc:.3f}"
            assert rows[kind, "recall"][number]["value"] == f"{expected.recall:.3f}"
            assert rows[kind, "AUPRO"][number]["value"] == f"{found.sets[number].pixel.by_defect[kind].aupro:.3f}"


def test_the_files_of_a_comparison_lie_where_they_were_asked_for(adctl, sets):
    (adctl.folder / "paper").mkdir()
    folders = [one.folder for one in sets]
    wanted = ["--format", "html,tex", "--out", "paper", "--figures", "paper/figures", "--ci-samples", "100"]
    done = adctl.json("report", *folders, *wanted)
    assert done["result"]["files"] == ["paper/comparison.html", "paper/comparison.tex"]
    assert 'id="defects"' in (adctl.folder / "paper" / "comparison.html").read_text("utf-8")
    text = (adctl.folder / "paper" / "comparison.tex").read_text("utf-8")
    check_latex(text)
    assert text.count(r"\begin{tabular}") == 3
    assert r"hole & 6 & image AUROC &" in text
    assert {path.name for path in (adctl.folder / "paper" / "figures").iterdir()} == {
        "roc.svg", "roc.pdf", "pr.svg", "pr.pdf"
    }  # fmt: skip
    assert "Use html or tex." in adctl("report", *folders, "--out", "c.pdf", code=2).stderr
    assert not (adctl.folder / "c.pdf").exists()
