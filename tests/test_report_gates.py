"""Metrics as gates for continuous integration: names, reasons, exit codes and the XML file."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adctl.evaluation.evaluate import evaluate
from adctl.metrics.bootstrap import Resampling
from adctl.records import Calibration, ScoredImage
from adctl.reporting.named_metrics import named_metrics
from adctl.scoring.score_set import ScoreSet, ScoreWriter

CALIBRATION = Calibration("percentile", 3.0, 2.5, 99.0, 50, 0, 0.02, (1.0, 2.9))
LABELLED = [("good", 1.0), ("good", 2.0), ("good", 3.5), ("scratch", 4.0), ("scratch", 2.5), ("hole", 5.0)]


def scored(folder, rows) -> ScoreSet:
    """A scored set without pictures or maps."""
    with ScoreWriter(folder, {}, CALIBRATION, keep_maps=False) as writer:
        for number, (label, score) in enumerate(rows):
            name = f"{label}/{number}.png"
            writer.add(ScoredImage(name, name, label, None, score, 3.0, CALIBRATION.verdict(score)))
    return ScoreSet.load(folder)


def test_every_metric_has_a_name_a_value_or_a_reason(tmp_path):
    evaluation = evaluate(scored(tmp_path / "scores", LABELLED), Resampling(100))
    found = named_metrics(evaluation)
    assert found["image_auroc"].value == evaluation.image.auroc
    assert found["image_auroc"].interval == evaluation.image.intervals["auroc"]
    assert found["image_recall.scratch"].value == 0.5
    assert found["image_fp"].value == 1
    assert "masks" in found["pixel_aupro"].reason
    assert all((figure.value is None) == bool(figure.reason) for figure in found.values())


def test_a_gate_that_holds_gives_exit_code_3_and_junit(adctl):
    scored(adctl.folder / "scores", LABELLED)
    gates = ["--fail-if", "image_auroc<0.99", "--fail-if", "image_fp>1", "--fail-if", "image_recall.hole<1"]
    done = adctl("report", "scores", *gates, "--junit", "gates.xml", code=3)
    assert "FAILED" in done.stdout
    assert "image_auroc is 0.888889; the gate fails when it is < 0.99." in done.stdout
    suites = ET.parse(adctl.folder / "gates.xml").getroot()
    assert (suites.get("tests"), suites.get("failures")) == ("3", "1")
    assert suites.find(".//failure").get("message").startswith("image_auroc is")
    assert (adctl.folder / "scores" / "report.html").is_file()


def test_gates_that_pass_leave_exit_code_0_and_stand_in_the_json(adctl):
    scored(adctl.folder / "scores", LABELLED)
    document = adctl.json("report", "scores", "--fail-if", "image_auroc<0.5")
    assert [gate["passed"] for gate in document["result"]["gates"]] == [True]


def test_a_metric_that_does_not_exist_fails_with_the_reason(adctl):
    scored(adctl.folder / "scores", [("good", 1.0), ("good", 2.0)])
    gates = ["--fail-if", "image_auroc<0.5", "--fail-if", "pixel_aupro<0.5", "--fail-if", "image_false_alarm_rate>0.1"]
    done = adctl.json("report", "scores", *gates, code=3)
    image, pixel, alarms = done["result"]["gates"]
    assert not image["passed"]
    assert image["message"] == "image_auroc could not be measured: there are no defective images."
    assert "could not be measured: there are no defective images" in pixel["message"]
    assert alarms["passed"]


@pytest.mark.parametrize(
    ("gate", "told"),
    [("image_auroq<0.9", "Did you mean 'image_auroc'?"), ("image_auroc=0.9", "--fail-if 'p95_ms>50'")],
)
def test_what_is_no_gate_is_refused_before_anything_is_written(adctl, gate, told):
    scored(adctl.folder / "scores", LABELLED)
    done = adctl("report", "scores", "--fail-if", gate, code=2)
    assert told in done.stderr
    assert not (adctl.folder / "scores" / "report.html").exists()


@pytest.mark.parametrize("flag", ["--junit", "--sarif"])
def test_a_file_of_gates_without_a_gate_is_refused(adctl, flag):
    scored(adctl.folder / "scores", LABELLED)
    assert "--fail-if" in adctl("report", "scores", flag, "gates.xml", code=2).stderr


def test_a_failed_gate_is_annotated_in_github_and_written_as_sarif(adctl):
    scored(adctl.folder / "scores", LABELLED)
    gate = ["report", "scores", "--fail-if", "image_auroc<0.99", "--sarif", "gates.sarif"]
    done = adctl(*gate, code=3, GITHUB_ACTIONS="true")
    assert "::error title=adctl report%3A image_auroc<0.99::scores: image_auroc is 0.888889;" in done.stdout
    assert "::warning title=adctl report::No pixel metrics" in done.stdout
    (result,) = json.loads((adctl.folder / "gates.sarif").read_text())["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "scores/scores.json"
    assert "::error" in adctl(*gate, "--annotate", "--json", code=3).stderr
    assert "::" not in adctl(*gate, code=3, GITHUB_ACTIONS="").stdout


@given(
    st.lists(
        st.tuples(st.sampled_from(["good", "hole"]), st.integers(0, 60).map(lambda tenths: tenths / 10)),
        min_size=1,
        max_size=12,
    )
)
def test_figures_agree_with_the_evaluation_whatever_the_scores(tmp_path_factory, rows):
    evaluation = evaluate(scored(tmp_path_factory.mktemp("any"), rows))
    for name, figure in named_metrics(evaluation).items():
        if name.startswith("image_") and "." not in name:
            assert figure.value == getattr(evaluation.image, name.removeprefix("image_"))
