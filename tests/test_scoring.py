"""The scoring pipeline: order, bounds and errors of its threads, and the files it writes."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import closing
from contextvars import ContextVar

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adctl.config import LoadedSettings, ScoreSettings, names_of, validated
from adctl.errors import OutputError, UsageError
from adctl.records import ScoredImage, Verdict
from adctl.scoring.png import encode_png
from adctl.scoring.score import score
from adctl.scoring.score_set import ScoreSet, ScoreWriter
from adctl.threads import map_ordered


def settings_for(patchcore, images, out, **changes) -> LoadedSettings[ScoreSettings]:
    given = {"model": patchcore.model, "images": (str(images),), "out": out, "device": "cpu", "runs": out.parent / "r"}
    return LoadedSettings(validated(ScoreSettings, given | changes), dict.fromkeys(names_of(ScoreSettings), "default"))


# ---- threads


@given(st.lists(st.integers(0, 3)), st.integers(0, 3), st.integers(0, 5))
def test_results_come_in_order(delays, workers, ahead):
    def work(job: tuple[int, int]) -> int:
        time.sleep(job[1] / 1e4)
        return job[0]

    assert list(map_ordered(work, enumerate(delays), workers=workers, ahead=ahead)) == list(range(len(delays)))


def test_jobs_see_the_context_of_who_reads():
    seen = ContextVar("seen", default=0)
    seen.set(7)
    assert list(map_ordered(lambda _: seen.get(), range(5), workers=2, ahead=3)) == [7] * 5


def test_no_more_is_begun_than_was_allowed():
    drawn = []

    def jobs():
        for number in range(20):
            drawn.append(number)
            yield number

    for done, _ in enumerate(map_ordered(abs, jobs(), workers=2, ahead=3), 1):
        assert len(drawn) <= done + 3


def test_an_error_is_raised_in_the_reader_and_nothing_runs_on():
    begun = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 2:
            raise OutputError("full")

    with pytest.raises(OutputError, match="full"):
        list(map_ordered(work, range(1000), workers=1, ahead=4))
    count = len(begun)
    assert count <= 8
    time.sleep(0.02)
    assert len(begun) == count


def test_closing_waits_for_what_was_begun():
    ended = threading.Event()

    def work(number: int) -> None:
        if number:
            time.sleep(0.05)
            ended.set()

    with closing(map_ordered(work, range(10), workers=1, ahead=2)) as results:
        next(results)
        time.sleep(0.01)
    assert ended.is_set()


# ---- maps in blocks


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=12), st.integers(0, 200))
def test_maps_come_back_as_they_were_whatever_the_blocks(tmp_path_factory, sizes, block):
    folder = tmp_path_factory.mktemp("maps")
    generator = np.random.default_rng(0)
    maps = [generator.random(size, np.float32) for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adctl.scoring.map_file._WAITING_MAPS", block)
        with ScoreWriter(folder, {}, None, keep_maps=True) as writer:
            writer.add(ScoredImage("e", "e", None, None, None, None, Verdict.ERROR, error="e"))
            for number, values in enumerate(maps):
                name = str(number)
                writer.add(ScoredImage(name, name, None, None, 1.0, None, Verdict.UNCALIBRATED), values)
    found = dict(ScoreSet.load(folder).maps())
    assert list(found) == list(range(1, len(maps) + 1))
    for number, values in enumerate(maps, 1):
        np.testing.assert_array_equal(found[number], values)


# ---- pictures


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_pictures_are_read_back_as_they_were(height, width, seed):
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    encoded = np.frombuffer(encode_png(rgb), np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)[..., ::-1], rgb)


# ---- scoring


def test_rows_keep_the_order_of_the_images(patchcore, zippers, tmp_path):
    result = score(settings_for(patchcore, zippers, tmp_path / "out", batch_size=3))
    rows = ScoreSet.load(result.folder).rows
    assert [row.key for row in rows] == sorted(row.key for row in rows)
    alone = score(settings_for(patchcore, zippers, tmp_path / "alone", batch_size=1, workers=0, heatmaps=False))
    again = ScoreSet.load(alone.folder)
    assert [row.score for row in again.rows] == pytest.approx([row.score for row in rows], rel=1e-5)
    assert [row.verdict for row in again.rows] == [row.verdict for row in rows]
    assert not list(alone.folder.rglob("*.png"))


def test_a_heatmap_never_takes_the_place_of_an_image(patchcore, zippers, tmp_path):
    folder = tmp_path / "parts"
    shutil.copytree(zippers / "test" / "good", folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match="over an image"):
        score(settings_for(patchcore, folder, folder))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    result = score(settings_for(patchcore, folder, folder, heatmaps=False))
    assert sum(result.counts.values()) == len(before)


def test_an_error_while_writing_ends_the_scoring(patchcore, zippers, tmp_path):
    out = tmp_path / "out"
    (out / "broken_teeth").mkdir(parents=True)
    first = next(iter(sorted((zippers / "test").rglob("*.png"))))
    blocked = out / first.relative_to(zippers / "test")
    blocked.mkdir(parents=True)  # where the first picture goes
    with pytest.raises(UsageError, match="exists already"):
        score(settings_for(patchcore, zippers / "test", out))
    with pytest.raises(OutputError, match="Cannot write"):
        score(settings_for(patchcore, zippers / "test", out, overwrite=True))
