"""The comparison page in a real browser."""

from __future__ import annotations

import pytest
from test_comparing import FEW, make_images, write_set
from test_report_browser import CUT, Opened, check_is_quiet

from adctl.evaluation.compare import compare_sets
from adctl.evaluation.match_images import match_images
from adctl.reporting.comparison_page import write_comparison

HOSTILE = '<script>window.hacked=1</script>"'


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    paths = make_images(folder)
    sets = [
        write_set(folder / "a", paths, 1, arch="padim", skill=1.5),
        write_set(folder / "b", paths, 2, arch="patchcore"),
        write_set(folder / "c", paths, 3, arch=HOSTILE, skill=0.0),
    ]
    paths[0].unlink()  # gone since: the page says so and goes on
    shared = match_images(sets)
    found = compare_sets(shared, FEW)
    return found, write_comparison(shared.sets, found, folder / "comparison.html")


@pytest.fixture(scope="module")
def opened(browser, comparison):
    page = Opened(browser, comparison[1])
    yield page
    page.context.close()


def test_curves_are_drawn_one_a_model(opened):
    for chart in ("roc", "pr"):
        assert opened.page.locator(f"#{chart} .scatterlayer .trace").count() == 3
        assert opened.page.locator(f"#{chart} .legend .traces").count() == 3


def test_the_table_holds_the_numbers_computed_in_python(opened, comparison):
    found, _ = comparison
    cells = opened.page.locator("#metrics tbody tr").first.locator("td > span:first-child").all_inner_texts()
    shown = [text.removeprefix("▸ ") for text in cells]
    assert shown == [f"{one.image.auroc:.3f}" for one in found.sets]
    corrected = found.pairs[0].corrected["image_auroc"]
    row = opened.page.locator("#tests tbody tr").first.locator("td").all_inner_texts()
    assert row[4] == ("< 0.001" if corrected < 0.001 else f"{corrected:.3f}")


def test_only_differences_beyond_chance_stand_out(opened, comparison):
    found, _ = comparison
    expected = sum(
        pair.corrected.get(name, 1) < 0.05
        for pair in found.pairs
        for name in ("image_auroc", "image_average_precision", "image_f1_max", "pixel_auroc", "pixel_aupro")
    )
    assert opened.page.locator("#tests tr.clear").count() == expected


def test_images_are_filtered_and_all_have_names(opened, comparison):
    found, _ = comparison
    opened.page.locator("#by-label").select_option("hole")
    wanted = sum(one.label == "hole" for one in found.disagreements)
    assert wanted
    assert opened.page.locator("#tiles > li:visible").count() == wanted
    assert opened.text("#shown") == f"{wanted} of {len(found.disagreements)} images shown"
    opened.page.locator("#by-label").select_option("")
    assert opened.page.locator('#tiles img:not([alt]), #tiles img[alt=""]').count() == 0


def test_hostile_names_are_shown_and_not_run_and_the_network_stays_quiet(opened):
    assert opened.page.evaluate("window.hacked") is None
    assert HOSTILE in opened.text("h1")
    opened.page.locator("#tiles").scroll_into_view_if_needed()
    check_is_quiet(opened)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out_sideways(opened, scheme, width):
    opened.page.emulate_media(color_scheme=scheme)
    opened.page.set_viewport_size({"width": width, "height": 800})
    opened.settled()
    opened.page.wait_for_timeout(300)
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_nothing_is_cut_on_a_telephone(opened):
    opened.page.set_viewport_size({"width": 390, "height": 800})
    opened.settled()
    opened.page.locator("details").first.evaluate("(one) => { one.open = true; }")
    opened.page.wait_for_timeout(500)
    assert opened.page.evaluate(CUT) == []


def test_the_models_use_the_whole_width(opened):
    opened.page.set_viewport_size({"width": 1280, "height": 900})
    opened.settled()
    strip = opened.page.locator(".strip").nth(1)
    box, last = strip.bounding_box(), strip.locator("figure").last.bounding_box()
    assert last["x"] + last["width"] == pytest.approx(box["x"] + box["width"], abs=1)


def test_defect_types_have_a_part(opened, comparison):
    found, _ = comparison
    shown = opened.page.locator("#defects th[scope=rowgroup]").all_inner_texts()
    assert [text.split("\n")[0] for text in shown] == list(found.sets[0].by_defect)
