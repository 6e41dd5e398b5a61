"""The report page of a thousand images: small enough to send, and quick to open in a real browser."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from test_report_browser import CALIBRATION, Opened

from adctl.data.images import write_png
from adctl.evaluation.evaluate import evaluate
from adctl.records import ScoredImage
from adctl.reporting.page import write_report
from adctl.scoring.score_set import ScoreSet, ScoreWriter

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = 1000
LARGEST_MEGABYTES = 25
LONGEST_SECONDS = 2.0


def thousand(folder: Path) -> ScoreSet:
    """Rows of noise, the pictures that compress worst; ten files stand for all of them."""
    random = np.random.default_rng(5)
    for number in range(10):
        write_png(folder / f"{number}.png", random.integers(0, 256, (256, 256, 3), np.uint8))
    with ScoreWriter(folder / "scores", {}, CALIBRATION, keep_maps=True) as writer:
        for number in range(IMAGES):
            kind = ("good", "good", "scratch", "hole")[number % 4]
            score = float(random.normal(2.2 if kind == "good" else 3.4, 0.7))
            row = ScoredImage(
                path=str(folder / f"{number % 10}.png"),
                key=f"test/{kind}/{number:04}.png",
                label=kind,
                mask=None,
                score=score,
                threshold=CALIBRATION.threshold,
                verdict=CALIBRATION.verdict(score),
                width=256,
                height=256,
            )
            writer.add(row, random.gamma(4, 0.4, (32, 32)).astype(np.float32))
    return ScoreSet.load(folder / "scores")


@pytest.mark.slow
def test_a_thousand_images_stay_below_25_megabytes_and_open_within_two_seconds(browser, tmp_path):
    scores = thousand(tmp_path)
    page = write_report(scores, evaluate(scores), tmp_path / "report.html")
    assert page.stat().st_size < LARGEST_MEGABYTES * 1e6
    Opened(browser, page).context.close()  # the browser itself has warmed up
    seconds = []
    for _ in range(3):
        context = browser.new_context()
        tab = context.new_page()
        start = time.perf_counter()
        tab.goto(page.resolve().as_uri(), wait_until="commit")
        tab.wait_for_selector("html[data-ready]", state="attached")
        seconds.append(time.perf_counter() - start)
        assert tab.locator(".tile").count() == 60
        tab.wait_for_selector("html[data-charts]", state="attached")
        context.close()
    assert min(seconds) < LONGEST_SECONDS
