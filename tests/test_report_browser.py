"""The report page in a real browser. Without Chromium the tests are skipped, but they fail under CI."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest

from adctl.data.images import write_png
from adctl.evaluation.evaluate import evaluate
from adctl.metrics.image import image_metrics
from adctl.records import Calibration, ScoredImage, Verdict
from adctl.reporting.page import write_report
from adctl.scoring.score_set import ScoreSet, ScoreWriter

if TYPE_CHECKING:
    from pathlib import Path

CALIBRATION = Calibration("percentile", 3.0, 2.5, 99.0, 50, 0, 0.02, (1.0, 2.9))
HOSTILE = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1">.png'
CUT = """() => [...document.querySelectorAll('main *')]
  .filter((one) => one.clientWidth && one.scrollWidth > one.clientWidth + 1)
  .filter((one) => !one.closest('svg, .plot, select, .scale'))
  .map((one) => `${one.tagName} ${one.className}`)"""
"""Program that returns the elements whose content is wider than they are."""

KINDS = ("good", "good", "scratch", "hole")


def build(folder: Path, *, labelled: bool, calibration: Calibration | None) -> ScoreSet:
    """Forty images of four kinds, one with a hostile name, and one that could not be read."""
    random = np.random.default_rng(3)
    with ScoreWriter(folder / "scores", {}, calibration, keep_maps=True) as writer:
        for number in range(40):
            kind = KINDS[number % 4]
            path = folder / f"{number}.png"
            write_png(path, random.integers(0, 256, (32, 48, 3), np.uint8))
            score = float(random.normal(2.2 if kind == "good" else 3.4, 0.7))
            verdict = calibration.verdict(score) if calibration else Verdict.UNCALIBRATED
            row = ScoredImage(
                path=str(path),
                key=HOSTILE if number == 0 else f"{kind}/{number:02}.png",
                label=kind if labelled else None,
                mask=None,
                score=score,
                threshold=calibration.threshold if calibration else None,
                verdict=verdict,
                width=48,
                height=32,
            )
            writer.add(row, random.gamma(4, 0.4, (8, 8)).astype(np.float32))
        writer.add(ScoredImage("x.png", "x.png", None, None, None, None, Verdict.ERROR, error="it is truncated."))
    return ScoreSet.load(folder / "scores")


class Opened:
    """A page, with all that it logged and asked the network for."""

    def __init__(self, browser, file: Path, **options) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        self.page = self.context.new_page()
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.file = file.resolve().as_uri()
        self.page.goto(self.file)
        self.page.wait_for_selector("html[data-charts]", state="attached")

    def start_over(self) -> None:
        """Back to how the page was opened."""
        self.page.set_viewport_size({"width": 1280, "height": 900})
        self.page.emulate_media(color_scheme="light")
        if self.page.locator("dialog").is_visible():
            self.page.locator("#close").click()
        for name, value in (("outcome", ""), ("label", ""), ("order", "worst")):
            self.page.locator(f"#by-{name}").select_option(value)
        self.page.locator("#reset").click()
        self.settled()

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def settled(self) -> None:
        """Wait until what a moved slider asked for has been drawn."""
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def headings(self) -> list[str]:
        return self.page.locator(".tile b").all_inner_texts()

    def outcomes(self) -> list[str]:
        return [heading.split(" · ")[0] for heading in self.headings()]

    def move_to(self, value: float) -> float:
        """Move the slider; returns where it came to rest."""
        program = "(s, v) => { s.value = v; s.dispatchEvent(new Event('input')); return Number(s.value); }"
        rested = self.page.locator("#threshold").evaluate(program, value)
        self.settled()
        return rested


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    return build(tmp_path_factory.mktemp("labelled"), labelled=True, calibration=CALIBRATION)


@pytest.fixture(scope="module")
def report(scores):
    return write_report(scores, evaluate(scores), scores.folder / "report.html")


@pytest.fixture(scope="module")
def shared(browser, report):
    """One page for all tests: opening takes seconds, and what it logs may come from any of them."""
    page = Opened(browser, report)
    yield page
    page.context.close()


@pytest.fixture
def opened(shared):
    shared.start_over()
    return shared


def check_is_quiet(opened: Opened) -> None:
    assert opened.messages == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [opened.file]


def test_it_logs_nothing_and_asks_the_network_for_nothing(opened):
    for option in ("caught", "missed", ""):
        opened.page.locator("#by-outcome").select_option(option)
    opened.page.locator("#gallery").scroll_into_view_if_needed()
    opened.page.locator(".tile").first.click()
    opened.page.locator("#next").click()
    check_is_quiet(opened)


def test_hostile_names_are_shown_and_not_run(opened):
    assert opened.page.evaluate("window.hacked") is None
    assert opened.page.locator(".tile .name", has_text=HOSTILE).count() == 1
    assert opened.page.locator('img[src="x"]').count() == 0


def test_charts_are_drawn(opened):
    for chart in ("histogram", "roc", "pr"):
        assert opened.page.locator(f"#{chart} svg.main-svg").count() > 0


def test_worst_mistakes_come_first_and_errors_last(opened, scores):
    rows = [row for row in scores.rows if row.score is not None]
    missed = sorted(row.score for row in rows if row.label != "good" and row.score <= 3)
    alarms = sorted((row.score for row in rows if row.label == "good" and row.score > 3), reverse=True)
    outcomes = opened.outcomes()
    assert outcomes[: len(missed)] == ["missed"] * len(missed)
    assert outcomes[len(missed) : len(missed) + len(alarms)] == ["false alarm"] * len(alarms)
    assert outcomes[-1] == "error"
    shown = [float(heading.split(" · ")[1]) for heading in opened.headings()[: len(missed) + len(alarms)]]
    assert shown == pytest.approx(missed + alarms, rel=1e-3)


def test_filters_by_outcome_and_label(opened, scores):
    opened.page.locator("#by-label").select_option("hole")
    assert opened.text("#shown") == "10 of 10 images shown"
    opened.page.locator("#by-outcome").select_option("missed")
    expected = sum(row.label == "hole" and row.verdict is Verdict.GOOD for row in scores.rows)
    assert expected
    assert opened.outcomes() == ["missed"] * expected
    opened.page.locator("#by-label").select_option("")
    opened.page.locator("#by-outcome").select_option("error")
    assert opened.text(".tile .absent") == "it is truncated."


@pytest.mark.parametrize("value", [1.3, 2.2, 2.71828, 3.0, 3.9, -100, 100])
def test_the_slider_gives_the_numbers_python_gives(opened, scores, value):
    threshold = opened.move_to(value)
    rows = [row for row in scores.rows if row.score is not None]
    expected = image_metrics([row.score for row in rows], [row.label != "good" for row in rows], threshold)
    for name in ("tp", "fp", "tn", "fn"):
        assert opened.text(f"#{name}") == str(getattr(expected, name))
    for name, wanted in (("precision", expected.precision), ("recall", expected.recall), ("f1", expected.f1)):
        assert opened.text(f"#{name}") == ("–" if wanted is None else f"{wanted:.3f}")  # noqa: RUF001 - as shown
    assert opened.text("#far") == f"{expected.false_alarm_rate:.3f}"
    outcomes = opened.outcomes()
    assert outcomes.count("missed") == expected.fn
    assert outcomes.count("false alarm") == expected.fp
    check_is_quiet(opened)


def test_a_score_at_the_threshold_is_normal_as_in_python(browser, scores, tmp_path):
    score = next(row.score for row in scores.rows if row.label == "good")
    at_it = dataclasses.replace(scores, calibration=dataclasses.replace(CALIBRATION, threshold=score))
    opened = Opened(browser, write_report(at_it, evaluate(at_it), tmp_path / "report.html"))
    good = [row.score for row in scores.rows if row.label == "good"]
    assert opened.text("#tn") == str(sum(value <= score for value in good))
    assert opened.text("#fp") == str(sum(value > score for value in good))
    opened.context.close()


def test_the_slider_moves_by_keyboard_and_returns(opened):
    before = opened.text("#threshold-value")
    opened.page.locator("#threshold").focus()
    opened.page.keyboard.press("ArrowRight")
    opened.settled()
    assert opened.text("#threshold-value") != before
    opened.page.locator("#reset").press("Enter")
    opened.settled()
    assert opened.text("#threshold-value") == before


def test_a_filter_stays_when_the_threshold_empties_it(opened):
    opened.page.locator("#by-outcome").select_option("missed")
    opened.move_to(-100)
    assert opened.page.locator("#by-outcome").input_value() == "missed"
    assert opened.text("#shown") == "0 of 0 images shown"


def test_the_dialog_opens_walks_and_closes_by_keyboard(opened):
    tile = opened.page.locator(".tile").first
    tile.focus()
    opened.page.keyboard.press("Enter")
    dialog, title = opened.page.locator("dialog"), opened.page.locator("#large-title")
    assert dialog.is_visible()
    first = title.inner_text()
    opened.page.keyboard.press("ArrowRight")
    assert title.inner_text() != first
    opened.page.keyboard.press("ArrowLeft")
    assert title.inner_text() == first
    opened.page.keyboard.press("Enter")
    assert not dialog.is_visible()
    assert tile.evaluate("(one) => one === document.activeElement")
    opened.page.keyboard.press("Enter")
    opened.page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_every_picture_and_field_has_a_name(opened):
    assert opened.page.locator("#gallery img:not([alt])").count() == 0
    assert opened.page.locator('#gallery img[alt=""]').count() == 0
    for field in opened.page.locator("input, select").all():
        assert field.evaluate("(one) => one.labels.length") == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out_sideways(opened, scheme, width):
    opened.page.emulate_media(color_scheme=scheme)
    opened.page.set_viewport_size({"width": width, "height": 800})
    opened.settled()
    opened.page.wait_for_timeout(300)  # charts follow the window with a delay
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("width", [390, 1280])
def test_legends_cover_no_curve(opened, width):
    opened.page.set_viewport_size({"width": width, "height": 900})
    opened.page.wait_for_timeout(500)  # charts follow the window with a delay
    for chart in opened.page.locator(".plot:has(.legend)").all():
        legend, plot = (chart.locator(one).first.bounding_box() for one in (".legend", ".nsewdrag"))
        assert legend["y"] >= plot["y"] + plot["height"] or legend["y"] + legend["height"] <= plot["y"]


@pytest.mark.parametrize("width", [360, 390])
def test_nothing_is_cut_on_a_telephone(opened, width):
    opened.page.set_viewport_size({"width": width, "height": 800})
    opened.settled()
    for details in opened.page.locator("details").all():
        details.evaluate("(one) => { one.open = true; }")
    opened.page.wait_for_timeout(500)  # charts follow the window with a delay
    assert opened.page.evaluate(CUT) == []
    assert (
        opened.page.locator(".wide td").first.evaluate("(one) => getComputedStyle(one, '::before').content")
        == '"Images"'
    )


def test_thumbnails_fill_their_frames_and_the_colour_bar_names_the_threshold(opened):
    opened.page.wait_for_function("[...document.images].every((one) => one.hidden || one.complete)")
    shapes = opened.page.evaluate(
        "[...document.querySelectorAll('.tile img')]"
        ".map((one) => [one.width / one.height, one.naturalWidth / one.naturalHeight])"
    )
    assert shapes
    assert all(shown == pytest.approx(own, rel=0.02) for shown, own in shapes)
    bar = opened.page.locator("section .scale")
    assert bar.get_attribute("aria-label") == "Colours of the anomaly map from 0.625 to 3.75; pixel threshold 2.5"
    assert bar.locator(".tick").all_inner_texts() == ["1", "1.5", "2", "2.5", "3", "3.5"]
    named, ramp = (bar.locator(one).bounding_box() for one in (".named", ".ramp"))
    assert named["x"] + named["width"] / 2 == pytest.approx(ramp["x"] + 0.6 * ramp["width"], abs=1.5)


def test_headings_stay_with_what_follows_in_print(opened):
    opened.page.emulate_media(media="print")
    styles = opened.page.evaluate(
        "[...document.querySelectorAll('h2, h3')].map((one) => getComputedStyle(one).breakAfter)"
    )
    opened.page.emulate_media(media="screen")
    assert set(styles) == {"avoid"}


def test_without_scripts_the_numbers_are_there(browser, report, scores):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.resolve().as_uri())
    assert page.locator("#tp").inner_text() == str(evaluate(scores).image.tp)
    assert page.locator("noscript").is_visible()
    context.close()


@pytest.mark.parametrize("calibration", [CALIBRATION, None], ids=["calibrated", "uncalibrated"])
def test_unlabelled_images_have_a_page_too(browser, tmp_path, calibration):
    scores = build(tmp_path, labelled=False, calibration=calibration)
    opened = Opened(browser, write_report(scores, evaluate(scores), tmp_path / "report.html"))
    assert opened.page.locator("#slider").is_visible() == (calibration is not None)
    assert opened.page.locator("#histogram svg.main-svg").count() > 0
    expected = {"flagged", "unflagged", "error"} if calibration else {"unjudged", "error"}
    assert set(opened.outcomes()) == expected
    if calibration:
        opened.move_to(2.0)
        assert opened.outcomes().count("flagged") == sum(row.score > 2 for row in scores.rows if row.score is not None)
    check_is_quiet(opened)
    opened.context.close()


def test_a_warning_threshold_marks_what_is_to_look_at(browser, scores, tmp_path):
    warned = dataclasses.replace(scores, calibration=dataclasses.replace(CALIBRATION, warn_threshold=2.5))
    opened = Opened(browser, write_report(warned, evaluate(warned), tmp_path / "report.html"))

    def marked() -> int:
        return sum(heading.endswith("to check") for heading in opened.headings())

    values = [row.score for row in scores.rows if row.score is not None]
    assert marked() == sum(2.5 < value <= 3 for value in values) > 0
    moved = opened.move_to(3.6)
    assert marked() == sum(2.5 < value <= moved for value in values)
    opened.move_to(2.0)
    assert marked() == 0
    check_is_quiet(opened)
    opened.context.close()


def test_an_enlarged_image_tells_its_p_value_and_probability(browser, scores, tmp_path):
    rows = tuple(dataclasses.replace(row, p_value=0.02, probability=0.93) for row in scores.rows)
    told = dataclasses.replace(scores, rows=rows)
    opened = Opened(browser, write_report(told, evaluate(told), tmp_path / "report.html"))
    opened.page.locator(".tile").first.click()
    assert "p-value 0.020 · anomaly probability 93 %" in opened.text("#large-text")
    opened.context.close()


def test_scores_are_drawn_in_the_order_of_scoring(opened, scores):
    assert opened.page.locator("#order svg.main-svg").count() > 0
    drawn = opened.page.evaluate("document.getElementById('order').data.flatMap((trace) => trace.y)")
    assert sorted(drawn) == sorted(row.score for row in scores.rows if row.score is not None)
    line = "document.getElementById('order').layout.shapes[0].y0"
    moved = opened.move_to(2.5)
    assert opened.page.evaluate(line) == pytest.approx(moved)


def test_numbers_and_gallery_do_not_wait_for_the_charts(browser, report):
    context = browser.new_context()
    page = context.new_page()
    program = (
        "addEventListener('DOMContentLoaded', () => { const root = document.documentElement;"
        " window.early = root.dataset.ready === 'yes' && typeof Plotly === 'undefined'; });"
    )
    page.add_init_script(program)
    page.goto(report.resolve().as_uri())
    page.wait_for_selector("html[data-charts]", state="attached")
    assert page.evaluate("window.early")
    context.close()
