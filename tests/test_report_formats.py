"""Other report formats: same content as the evaluation, and valid files."""

from __future__ import annotations

import csv
import json
import re
import sys
from xml.etree import ElementTree as ET

import pytest
from test_report import CALIBRATION, HOSTILE, MANIFEST, Maker

from adctl import files
from adctl.config import ReportSettings, load
from adctl.errors import MissingExtraError, UsageError
from adctl.evaluation.evaluate import evaluate
from adctl.metrics.statistics import p_text
from adctl.records import Calibration
from adctl.reporting.content import Table, build_content
from adctl.reporting.latex import escape, write_tables
from adctl.reporting.named_metrics import named_metrics
from adctl.reporting.notable_images import notable_images
from adctl.reporting.pdf import _findings, write_pdf
from adctl.reporting.report import report

DRIFT = {"drifted": True, "reason": "scores lie higher than at calibration.", "images": 9, "high_share": 0.4}


@pytest.fixture
def scores(tmp_path):
    maker = Maker(tmp_path)
    for label, score in [("good", 1.0), ("good", 2.0), ("good", 3.5), ("scratch", 4.0), ("scratch", 2.0)]:
        maker.add(label, score)
    maker.add("hole", 5.0, key=HOSTILE).add("hole|x", 2.9).error(HOSTILE)
    return maker.scores(manifest=MANIFEST | {"drift": DRIFT})


def reported(scores, **settings):
    return report(load(ReportSettings, {"scores": scores.folder, "ci_samples": 100, **settings}))


def test_several_formats_share_a_name(scores, tmp_path):
    pytest.importorskip("reportlab")
    pytest.importorskip("pptx")
    found = reported(
        scores, format=["html", "md", "json", "csv", "tex", "pdf", "pptx"], out=tmp_path / "out" / "line.html"
    )
    assert [file.name for file in found.files] == [
        f"line.{name}" for name in ("html", "md", "json", "csv", "tex", "pdf", "pptx")
    ]
    assert all(file.stat().st_size > 100 for file in found.files)
    assert found.page == found.files[0]


def test_the_ending_of_out_decides_and_an_unknown_one_is_refused(scores, tmp_path):
    assert reported(scores, out=tmp_path / "a.md").page.read_text("utf-8").startswith("# zipper")
    assert reported(scores, format=["csv"], out=tmp_path / "b.txt").page == tmp_path / "b.txt"
    with pytest.raises(UsageError, match="docx") as raised:
        reported(scores, out=tmp_path / "a.docx")
    assert "pptx" in raised.value.remedy


def test_csv_holds_every_figure_to_the_last_digit(scores):
    found = reported(scores, format=["csv"])
    with found.page.open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    expected = named_metrics(found.evaluation)
    assert len(lines) == len(expected)
    for line, (name, figure) in zip(lines, expected.items(), strict=True):
        assert ".".join(part for part in (line["figure"], line["part"]) if part) == name
        assert (float(line["value"]) if line["value"] else None) == figure.value
        assert bool(line["reason"]) == (figure.value is None)


def test_json_holds_metrics_rows_and_origin(scores):
    found = json.loads(reported(scores, format=["json"]).page.read_text("utf-8"))
    assert found["image"]["auroc"] == evaluate(scores).image.auroc
    assert [row["score"] for row in found["rows"]] == [row.score for row in scores.rows]
    assert found["drift"] == DRIFT
    assert found["made"]["SHA-256"] == "ab" * 32
    assert found["intervals"] == {"samples": 100, "level": 0.95, "seed": 0}


def test_markdown_escapes_what_names_may_hold(scores):
    text = reported(scores, format=["md"]).page.read_text("utf-8")
    assert "<script>" not in text.replace("\\<", "")
    assert "hole\\|x" in text
    assert "Warning: Scores lie higher" in text
    assert "Missed defect" in text
    assert "adctl score" in text


def test_pdf_and_slides_say_what_was_found(scores):
    pytest.importorskip("reportlab")
    pptx = pytest.importorskip("pptx")
    found = reported(scores, format=["pdf", "pptx"], findings=4)
    assert found.page.read_bytes().startswith(b"%PDF-")
    slides = pptx.Presentation(found.files[1]).slides
    texts = ["\n".join(shape.text_frame.text for shape in slide.shapes if shape.has_text_frame) for slide in slides]
    pictured = [slide for slide in slides if any(shape.shape_type == 13 for shape in slide.shapes)]
    assert sum("Image " in text and " of 4" in text for text in texts) == 4
    assert len(pictured) == 5  # the charts, and one for each image
    assert "Missed defect" in texts[-5]
    assert "1 false alarm" in texts[0]
    assert all(slide.shapes.title.text_frame.text for slide in slides)


def test_the_heading_of_the_images_stays_with_the_first_image_in_a_pdf(scores):
    pytest.importorskip("reportlab")
    from reportlab.platypus import KeepTogether

    assert all(isinstance(block, KeepTogether) for block in _findings(scores, 3))


def test_a_format_that_lacks_its_extra_says_which_to_install(scores, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "reportlab.platypus", None)
    evaluation = evaluate(scores)
    with pytest.raises(MissingExtraError, match="reportlab") as raised:
        write_pdf(scores, evaluation, tmp_path / "a.pdf")
    assert "adctl[report]" in raised.value.remedy
    assert not (tmp_path / "a.pdf").exists()


@pytest.mark.parametrize("kind", ["unlabelled", "good only", "no maps", "uncalibrated", "errors only"])
def test_every_format_bears_sets_that_lack_something(tmp_path, kind):
    pytest.importorskip("reportlab")
    pytest.importorskip("pptx")
    maker = Maker(tmp_path, calibration=None if kind == "uncalibrated" else CALIBRATION)
    if kind == "errors only":
        maker.error()
    else:
        label = {"unlabelled": None}.get(kind, "good")
        maker.add(label, 1.0).add(label, 1.0)
        if kind in ("no maps", "uncalibrated"):
            maker.add("hole", 4.0)
    scores = maker.scores(keep_maps=kind != "no maps", manifest={})
    found = reported(scores, format=["html", "md", "json", "csv", "tex", "pdf", "pptx"])
    assert len(found.files) == 7


def test_mistakes_come_first_and_leave_room_for_the_strongest(tmp_path):
    maker = Maker(tmp_path)
    for number in range(10):
        maker.add("good", 3.5 + number / 10).add("hole", 4.0 + number)
    chosen = notable_images(maker.scores(), 6)
    assert [one.title for one in chosen] == ["False alarm"] * 4 + ["Defect found"] * 2
    assert chosen[4].row.score == 13.0


def test_the_summary_tells_what_is_promised(tmp_path):
    promised = Calibration("conformal", 3.0, 2.5, 0.1, 50, 0, 0.02, (1.0, 2.9), promised_false_alarm=0.1)
    scores = Maker(tmp_path, promised).add("good", 1.0).add("hole", 4.0).scores()
    summary = " ".join(build_content(scores, evaluate(scores)).summary)
    assert "at most 10 % of good images like the 50 images used for the calibration" in summary
    assert "In 100.0 % of all pairs" in summary


def check_latex(text: str) -> None:
    """Check what LaTeX would refuse: unbalanced braces and environments, bare special characters, uneven rows."""
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    bare = re.sub(r"\\[&%$#_{}]", "", body)
    assert bare.count("{") == bare.count("}")
    assert not re.search(r"[%#_^~<>|\"]", bare)
    assert body.count(r"\begin{") == body.count(r"\end{")
    for columns, rows in re.findall(r"\\begin{tabular}{(\w+)}(.*?)\\end{tabular}", body, re.DOTALL):
        assert [rows.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
        lines = [re.sub(r"\\[&%$#_{}]", "", line) for line in rows.splitlines() if line.endswith(r" \\")]
        assert len(lines) > 1
        assert all(line.count("&") == len(columns) - 1 for line in lines)


def test_latex_tables_hold_the_metrics_of_all_and_of_each_defect_type(scores, tmp_path):
    found = reported(scores, out=tmp_path / "table.tex")
    text = found.page.read_text("utf-8")
    check_latex(text)
    assert r"\label{tab:metrics}" in text
    assert r"\label{tab:by-defect-type}" in text
    assert f"Ranking of images: AUROC & {found.evaluation.image.auroc:.3f} & " in text
    assert rf"scratch & 2 & 1 & 0.500 & {found.evaluation.by_defect['scratch'].auroc:.3f} &" in text


def test_latex_shows_any_name_unchanged():
    assert escape("-0.5 to +1, a-2") == "$-$0.5 to +1, a-2"
    assert escape("50 % of a_b & {x}\\y") == r"50 \% of a\_b \& \{x\}\textbackslash{}y"
    check_latex(
        "\\begin{tabular}{l}\n\\toprule\nx \\\\\n\\midrule\n"
        + escape('~^<>|"#$\x1b')
        + " \\\\\n\\bottomrule\n\\end{tabular}"
    )


def test_latex_takes_no_name_for_an_option_and_aligns_texts_to_the_left(tmp_path):
    rows = (("[x]", "Best F1", "3", "+0.1 to 0.2"), ("*", "AUPRO", "–", ""))  # noqa: RUF001 - a dash in a cell
    write_tables(tmp_path / "t.tex", "T", [Table("By defect", ("Defect", "Metric", "Images", "Interval"), rows)])
    text = (tmp_path / "t.tex").read_text("utf-8")
    assert r"\begin{tabular}{llrr}" in text
    assert "    {}[x] & Best F1" in text
    assert "    {}* & AUPRO & --" in text
    check_latex(text)


def test_figures_for_papers_are_svg_and_pdf_with_embedded_fonts(scores, tmp_path):
    for _ in range(2):
        found = reported(scores, figures=tmp_path / "figures")
        assert [path.name for path in found.figures] == [
            f"{name}.{kind}" for name in ("histogram", "roc", "pr") for kind in ("svg", "pdf")
        ]
        assert all(map(files.is_ours, found.figures))
    for path in found.figures:
        content = path.read_bytes()
        if path.suffix == ".svg":
            assert ET.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
        else:
            assert content.startswith(b"%PDF-")
            assert b"/Type3" not in content


def test_a_report_for_a_folder_lies_in_it(scores, tmp_path):
    (tmp_path / "out").mkdir()
    assert reported(scores, out=tmp_path / "out").page == tmp_path / "out" / "report.html"


def test_no_p_value_is_zero():
    assert [p_text(value) for value in (0.0, 4e-9, 0.001, 0.0324, 1.0)] == [
        "< 0.001",
        "< 0.001",
        "0.001",
        "0.032",
        "1.000",
    ]
