"""The page of the server in a real browser: a walk through every tab, accessibility, width, languages, and safety."""

from __future__ import annotations

import json
import re
import shutil
import sys
import threading
import time
import urllib.request
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import absent
from test_serve_words import english_words

from adctl import run_folder
from adctl.config import ServeSettings, validated
from adctl.evaluation.candidate import CandidateComparison, ChangedVerdict, ComparedModel, PairedTest, Share
from adctl.records import Verdict
from adctl.serve import trainings
from adctl.serve.keys import add_key
from adctl.serve.page import translation
from adctl.training.reviews import SetAside, UpdateResult

PACKAGE = Path(translation.__file__).parent
TABS = ("live", "try", "threshold", "history", "review", "models", "train")


# ---- sentences


def sentences(language: str) -> dict[str, str]:
    return json.loads((PACKAGE / "messages" / f"{language}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", [name for name in translation.LANGUAGES if name != "en"])
def test_languages_have_the_same_keys_and_placeholders(language):
    english, other = sentences("en"), sentences(language)
    assert list(english) == list(other)
    for key, sentence in english.items():
        assert set(re.findall(r"\{(\w+)\}", sentence)) == set(re.findall(r"\{(\w+)\}", other[key])), key


def test_templates_hold_no_sentence():
    for template in (PACKAGE / "templates").glob("*.html"):
        text = re.sub(
            r"<(script|style)\b.*?</\1>|\{%.*?%\}|\{\{.*?\}\}|<[^>]*>", " ", template.read_text(encoding="utf-8")
        )
        words = set(re.findall(r"[A-Za-z]{2,}", text)) - {"adctl", "doctype", "html"}
        assert not words, f"{template.name}: {words}"
        spoken = re.findall(
            r'(?:aria-label|title|alt|placeholder)="([^"{]*[a-z]{2} [^"{]*)"', template.read_text(encoding="utf-8")
        )
        assert [one for one in spoken if "=" not in one] == []


def test_every_sentence_is_used_and_every_used_one_exists():
    files = [*(PACKAGE / "templates").glob("*.html"), *(PACKAGE / "assets").glob("*.js")]
    source = "\n".join(file.read_text(encoding="utf-8") for file in files)
    own = translation.translation("en").own  # test_serve_words.py has the others
    known = {key.removesuffix(".one").removesuffix(".other") for key in own}
    used = set(re.findall(r"""\bt\(["']([a-z_.0-9]+)["'][,)]""", source))
    assert used <= known | {f"{key}." for key in known}, used - known
    starts = set(re.findall(r"[\"'`]([a-z_]+\.)(?:\$\{|[\"'] ~)", source))
    literal = set(re.findall(r"[\"']([a-z_]+(?:\.[a-z_]+)*)[\"']", source))
    unused = {key for key in known if key not in literal and not key.startswith(tuple(starts))}
    assert unused == set()


@pytest.mark.parametrize(
    ("chosen", "accepted", "expected"),
    [
        (None, None, "en"), (None, "de-AT,de;q=0.9,en;q=0.8", "de"), (None, "fr,en;q=0.5,de;q=0.4", "en"),
        ("de", "en", "de"), ("xx", "de", "de"), (None, "de;q=broken", "de"), (None, "fr", "en"),
    ],
)  # fmt: skip
def test_the_language_of_a_page(chosen, accepted, expected):
    assert translation.preferred_language(chosen, accepted) == expected


def test_no_script_and_no_style_stands_in_a_page():
    for template in (PACKAGE / "templates").glob("*.html"):
        source = template.read_text(encoding="utf-8")
        assert "<style" not in source
        assert not re.search(r"\sstyle=|\son[a-z]+=|javascript:", source), template.name
        scripts = re.findall(r"<script\b([^>]*)>", source)
        assert all("src=" in one or 'type="application/json"' in one for one in scripts)


# ---- the page in a browser


class Site:
    """A server in a thread of this process, with one small model."""

    def __init__(self, model: Path, folder: Path, **settings) -> None:
        self.folder = folder
        self.settings = {
            "model": (f"zip={model}",),
            "runs": folder / "runs",
            "port": 0,
            "store_images": "all",
            **settings,
        }
        self.port = 0
        self.start()

    def start(self) -> None:
        import uvicorn

        from adctl.serve import server
        from adctl.serve.app import create_app
        from adctl.serve.state import Server

        settings = validated(ServeSettings, {**self.settings, "port": self.port})
        listening = server.listen(settings.host, settings.port)
        self.port = listening.getsockname()[1]
        self.state = Server(settings)
        self.state.start()
        self.uvicorn = uvicorn.Server(uvicorn.Config(create_app(self.state), **server.options(settings)))
        self.thread = threading.Thread(target=self.uvicorn.run, args=([listening],))
        self.thread.start()
        while not self.uvicorn.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self.uvicorn.should_exit = self.uvicorn.force_exit = True
        self.thread.join()
        self.state.stop()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, path: str, data: bytes | None = None, **headers: str):
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "image/png", **headers})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def score(self, file: Path, lot: str = "") -> dict:
        return self.call(f"/v1/models/zip/score?part={file.name}&lot={quote(lot)}", file.read_bytes())["results"][0]


@pytest.fixture(scope="module")
def parts(zippers) -> list[Path]:
    return sorted((zippers / "test").glob("*/*.png"))


@pytest.fixture(scope="module")
def site(patchcore, zippers, parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    models = folder / "models"
    models.mkdir()
    shutil.copy(patchcore.model, models / "other.safetensors")
    copied = shutil.copy(patchcore.model, folder / "zip.safetensors")  # the run of the session stays as it is
    started = Site(copied, folder, models=models, train_from=zippers / "train")
    for number, part in enumerate(parts):
        started.score(part, f"L{number % 2}")
    yield started
    started.stop()


class Walk:
    """A page of the site, with all that it logged and asked the network for."""

    def __init__(self, browser, site: Site, **options) -> None:
        self.site = site
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US", **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, tab: str):
        self.page.goto(self.site.address + ("/" if tab == "live" else f"/{tab}"))
        self.page.wait_for_selector('#connection[data-state="on"]')
        self.page.wait_for_load_state("load")
        return self.page

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def until(self, condition: str) -> None:
        """Wait until JavaScript is true; Playwright's own way to wait needs `eval`, which the page forbids."""
        end = time.monotonic() + 10
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, condition
            time.sleep(0.05)

    def wait(self, selector: str, text: str) -> None:
        self.page.locator(selector, has_text=text).first.wait_for()


@pytest.fixture(scope="module")
def walk(browser, site):
    made = Walk(browser, site)
    yield made
    made.context.close()


def test_live_shows_parts_as_they_come(walk, site, parts):
    page = walk.open("live")
    page.locator("#parts .tile").nth(len(parts) - 1).wait_for()
    assert walk.text("#word") in ("Good", "Check", "Reject")
    scored = site.score(parts[0], "new lot")
    walk.wait("#newest-facts", "new lot")
    assert walk.text("#word") == {"good": "Good", "warn": "Check", "reject": "Reject"}[scored["verdict"]]
    walk.until("document.querySelector('#newest-image img')?.naturalWidth > 0")
    assert walk.text("#rates .card:last-child .value") == str(len(parts) + 1)
    page.locator("#parts .tile").first.click()
    page.locator("#details").wait_for()
    page.keyboard.press("Escape")
    assert not page.locator("#details").is_visible()


def test_try_scores_chosen_and_pasted_images(walk, parts, tmp_path):
    page = walk.open("try")
    broken = tmp_path / "broken.png"
    broken.write_text("<script>window.hacked = 1</script>")
    page.locator("#files").set_input_files([parts[0], parts[1], broken])
    walk.wait("#summary", "3 of 3 images are scored.")
    assert page.locator("#results .verdict").count() == 2
    walk.wait("#results .notice.bad", "broken.png")
    walk.until("[...document.querySelectorAll('.viewer img')].every((one) => one.naturalWidth > 0)")
    page.locator("#results input[type=range]").first.fill("80")
    assert page.locator("#results .over").first.evaluate("(one) => one.style.opacity") == "0.8"
    page.evaluate(
        """(bytes) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], 'pasted.png', { type: 'image/png' }));
          dispatchEvent(new ClipboardEvent('paste', { clipboardData: data }));
        }""",
        list(parts[2].read_bytes()),
    )
    walk.wait("#results h2", "pasted.png")
    walk.wait("#summary", "4 of 4 images are scored.")
    walk.messages.clear()  # the browser itself notes the refused image


def test_threshold_is_moved_applied_and_taken_back(walk, site):
    page = walk.open("threshold")
    before = site.call("/v1/models")[0]["threshold"]
    walk.wait("#promise", "false alarms, by")
    assert page.locator("#apply").is_disabled()
    page.locator("#exact").fill("0")
    page.locator("#exact").press("Enter")
    walk.wait("#change-count", "would change.")
    walk.wait("#promise", "This is an estimate, not a guarantee.")
    assert site.call("/v1/models")[0]["threshold"] == before
    page.locator("#rate").fill("20")
    page.locator("#by-rate").click()
    walk.wait("#promise", "This is guaranteed if new good parts resemble these images.")
    page.locator("#apply").click()
    walk.wait("#messages-shown", "The threshold is now")
    assert site.call("/v1/models")[0]["threshold"] != before
    page.locator("#undo").click()
    walk.wait("#messages-shown", "The change is undone.")
    assert site.call("/v1/models")[0]["threshold"] == before
    page.locator("#threshold").focus()
    page.keyboard.press("ArrowRight")
    page.locator("#apply:enabled").wait_for()
    actions = [entry["action"] for entry in site.state.history.audit(10)]
    assert actions.count("threshold") == 2


def test_history_is_filtered_and_shown(walk, site):
    page = walk.open("history")
    page.locator("#rows tr").first.wait_for()
    page.locator("select[name=verdict]").select_option("reject")
    page.locator("input[name=lot]").fill("L1")
    page.locator("#filters button.first").click()
    expected = len(site.call("/v1/history?verdict=reject&lot=L1")["verdicts"])
    walk.wait("#count", "1 part was found." if expected == 1 else f"{expected} parts were found.")
    assert page.locator("#rows tr").count() == expected
    assert "verdict=reject" in page.url
    if expected:
        page.locator("#rows .link").first.click()
        walk.until("document.querySelector('#details .over')?.naturalWidth > 0")
        page.keyboard.press("Escape")
    page.locator("#filters button[type=reset]").click()
    walk.until(f"document.querySelectorAll('#rows tr').length > {expected}")


def reviews(site) -> list[dict]:
    return site.call("/v1/reviews")["reviews"]


def test_review_by_keys_mouse_and_undo(walk, site):
    page = walk.open("review")
    page.locator("#review .viewer").wait_for()
    page.locator("#new-kind").fill("scratch")
    page.locator("#add-kind").click()
    page.locator("#part-title").focus()
    first = walk.text("#part-facts")
    page.keyboard.press("g")
    walk.until("document.querySelector('#progress').value === 1")
    assert [one["label"] for one in reviews(site)] == ["good"]
    page.keyboard.press("z")
    walk.until("document.querySelector('#progress').value === 0")
    assert reviews(site) == []
    assert walk.text("#part-facts") == first
    page.keyboard.press("1")
    assert page.locator("#kinds button").first.get_attribute("aria-pressed") == "true"
    frame = page.locator("#image .viewer").bounding_box()
    page.mouse.move(frame["x"] + frame["width"] / 4, frame["y"] + frame["height"] / 4)
    page.mouse.down()
    page.mouse.move(frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2)
    page.mouse.up()
    page.keyboard.press("d")
    walk.until("document.querySelector('#progress').value === 1")
    stored = reviews(site)[0]
    width = site.call(f"/v1/history/{stored['verdict_id']}")["width"]
    assert (stored["label"], stored["kind"]) == ("defect", "scratch")
    assert abs(stored["region"]["x"] - width / 4) <= 2
    assert abs(stored["region"]["width"] - width / 4) <= 2


def test_review_draws_a_region_by_keys_alone(walk, site):
    page = walk.open("review")
    page.locator("#review .viewer").wait_for()
    walk.until("document.querySelector('#image svg').viewBox.baseVal.width > 1")
    for key in ("r", "ArrowRight", "ArrowUp", "Shift+ArrowDown"):
        page.keyboard.press(key)
    assert "pixels" in page.locator("#spoken").inner_text()
    box = page.locator("#image .region").evaluate(
        "(one) => ['x', 'y', 'width', 'height'].map((name) => Number(one.getAttribute(name)))"
    )
    before = len(reviews(site))
    page.keyboard.press("d")
    walk.until("document.querySelector('#progress').value === 1")
    stored = reviews(site)
    assert len(stored) == before + 1
    assert list(stored[0]["region"].values()) == box
    page.locator("summary").click()
    page.locator("#keys").uncheck()
    page.keyboard.press("u")
    assert len(reviews(site)) == before + 1
    page.locator("#keys").check()


def test_models_are_activated_and_rolled_back(walk, site):
    site.call("/v1/models/zip/load", b'{"path": "other.safetensors"}', **{"Content-Type": "application/json"})
    page = walk.open("models")
    walk.wait("#models tr.chosen", "Version 2")
    page.get_by_role("button", name="zip: Roll back").click()
    walk.wait("#models tr.chosen", "Version 1")
    page.get_by_role("button", name="zip, Version 2: Activate").click()
    walk.wait("#models tr.chosen", "Version 2")
    page.get_by_role("button", name="zip: Roll back").click()
    walk.wait("#models tr.chosen", "Version 1")
    page.get_by_role("button", name="zip: Unload").click()
    page.get_by_role("button", name="zip: Load").click()
    walk.wait("#models tr.chosen", "Version 1")


SLOW = (
    "import json, sys, time; line = {'stage': 'features', 'done': 3, 'total': 20, 'note': ''};"
    "print(json.dumps(line), file=sys.stderr, flush=True); time.sleep(60)"
)


def test_a_training_shows_its_progress_and_is_stopped(walk, site, parts, monkeypatch):
    monkeypatch.setattr(trainings, "command_of", lambda *_: [sys.executable, "-c", SLOW])
    page = walk.open("train")
    page.locator("input[name=name]").fill("line7")
    page.locator("input[type=file]").set_input_files(parts[:3])
    page.locator("#training button.first").click()
    walk.wait("#now .stage", "features: 3 of 20")
    page.get_by_role("button", name="Stop the training").click()
    walk.wait("#past", "Stopped")
    assert walk.text("#now") == "No training is running."


def test_a_training_makes_a_model_that_is_served(walk, site, monkeypatch):
    monkeypatch.setenv("ADCTL_IMAGE_SIZE", "64")
    page = walk.open("train")
    page.locator("input[name=name]").fill("line8")
    page.locator("#arch").select_option("padim")
    page.locator("input[value=folder]").check()
    page.locator("input[name=folder]").fill("good")
    page.locator("#training button.first").click()
    page.locator("#past button", has_text="Use this model").wait_for(timeout=60_000)
    page.locator("#past button", has_text="Use this model").click()
    walk.wait("#messages-shown", "line8 is loaded.")
    assert [one["name"] for one in site.call("/v1/models") if one["loaded"]] == ["line8", "zip"]


GAIN = "There are 1 fewer false alarms (p = 0.25), and nothing gets worse by more than chance."


DOUBT = "It scores 9 by a model without it; good images score up to 3.5. It may be a defect."


def made_candidate(present: Path, run: Path, doubtful: dict, way: str = "new images alone") -> str:
    """Write the run of a candidate as `adctl train --update` leaves it; return what that prints."""
    run.mkdir(parents=True)
    shutil.copy(present, run / "model.safetensors")
    rates = [ComparedModel(name, present, 2.0, "conformal", 0.1, 0.1, Share(1, 9, 1 / 9, 0.0, 0.5), None)
             for name in ("present", "recalibrated", "candidate")]  # fmt: skip
    path = f"/reviewed/good/{doubtful['id']}.png"
    change = ChangedVerdict(path, f"{doubtful['id']}.png", "good", Verdict.REJECT, Verdict.GOOD, 3.0, 1.0)
    test = PairedTest(1, 0, 1.0)
    comparison = CandidateComparison(tuple(rates), False, test, test, (change,), "accept", GAIN)
    aside = SetAside(path, f"{doubtful['id']}.png", "unlike the others", DOUBT, 9.0, 3.0)
    update = UpdateResult(present, way, 8, 9, (aside,), comparison, ())
    document = {"schema": "adctl.update/1", **asdict(update)}
    (run / "update.json").write_text(json.dumps(document, default=str))
    return json.dumps({"ok": True, "result": {"model": str(run / "model.safetensors")}})


def test_a_candidate_is_compared_accepted_and_taken_back(walk, site, parts, patchcore, tmp_path, monkeypatch):
    scored = site.score(parts[0], "K7")
    kind = {"Content-Type": "application/json"}
    site.call("/v1/reviews", json.dumps({"verdict_id": scored["id"], "label": "good"}).encode(), **kind)
    commands = []

    def fake(training, arguments, runs):
        commands.append(arguments)
        way = "threshold alone" if "--recalibrate" in arguments else "new images alone"
        printed = made_candidate(patchcore.model, tmp_path / training.id, scored, way)
        return [sys.executable, "-c", f"import time; time.sleep(2); print({printed!r})"]  # its progress can be seen

    monkeypatch.setattr(trainings, "command_of", fake)
    page = walk.open("models")
    panel = page.locator(".candidate[data-model=zip]")
    before = site.call("/v1/models/zip/versions")[0]["version"]
    panel.get_by_role("button", name="Only set the threshold anew").click()
    panel.get_by_role("button", name="Accept the candidate").wait_for()
    good = Path(commands[0][commands[0].index("--good") + 1])
    assert f"{scored['id']}.png" in {file.name for file in good.iterdir()}
    assert {file.parent.name for file in good.parent.glob("defect/*/*")} <= {"scratch", "unknown"}
    assert panel.locator("tbody").nth(0).locator("tr").count() == 3
    assert panel.locator("tbody").nth(1).locator("tr").count() == 2
    assert re.search(r"Reject\s*becomes\s*Good", panel.locator(".tiles").first.inner_text())
    panel.get_by_role("button", name="It is good: make a new candidate with it").click()
    panel.locator(".progress").wait_for()
    panel.get_by_role("button", name="Accept the candidate").wait_for()
    assert commands[1][-3:] == ["--recalibrate", "--confirmed", f"{scored['id']}.png"]
    walk.wait(".candidate", "has a threshold by 9 new good parts.")
    panel.get_by_role("button", name="Learn from the new good parts").click()
    walk.wait(".candidate", "learned from 8 new good parts.")
    assert "--recalibrate" not in commands[2]
    panel.get_by_role("button", name="Accept the candidate").click()
    walk.wait("#messages-shown", "zip uses the candidate now.")
    assert site.call("/v1/models/zip/versions")[0]["version"] == before + 1
    page.get_by_role("button", name="zip: Roll back").click()
    walk.wait("#models tr.chosen", "Version 1")
    panel.get_by_role("button", name="It is a defect").click()
    walk.wait("#messages-shown", "The part is now labelled as a defect.")
    assert site.call(f"/v1/history/{scored['id']}")["review"]["label"] == "defect"


STICKS_OUT = """() => document.documentElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll('body *')]
  .filter((one) => one.getBoundingClientRect().right > innerWidth + 0.5 && !one.closest('.hidden-text, .skip'))
  .map((one) => `${one.tagName} ${one.id} ${one.className}`)"""
"""Program that returns the elements that stand out of the window, if it can be scrolled sideways."""


@pytest.mark.parametrize("tab", TABS)
def test_a_tab_is_accessible_and_fits_each_screen(walk, tab):
    try:
        from axe_playwright_python.sync_playwright import Axe
    except ImportError:
        absent("axe-playwright-python is not installed")
    page = walk.open(tab)
    page.wait_for_timeout(200)
    for scheme, options in (("light", None), ("dark", {"runOnly": ["color-contrast"]})):
        page.emulate_media(color_scheme=scheme)
        found = Axe().run(page, options=options).response["violations"]
        serious = [one["nodes"] for one in found if one["impact"] in ("serious", "critical")]
        assert serious == [], scheme
    for width in (390, 3840):
        page.set_viewport_size({"width": width, "height": 844})
        page.wait_for_timeout(50)
        assert page.evaluate(STICKS_OUT) == [], width
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})


def test_theme_and_language_are_chosen_and_kept(walk):
    page = walk.open("history")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.locator("#theme").click()
    page.locator("#language").select_option("de")
    walk.wait("h1", "Verlauf")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    walk.open("review")
    assert page.locator("html").get_attribute("lang") == "de"
    walk.wait("h1", "Teile prüfen")
    page.locator("#theme").click()
    page.locator("#language").select_option("en")
    walk.wait("h1", "Review parts")


TRANSLATE = """async (pairs) => {
  const { said } = await import(document.querySelector('script[src$="page.js"]').src.replace('page.js', 'said.js'));
  const fill = (text) => text.replace(/\\{\\w+\\}/g, 'Xy');
  return pairs.map(([english, own]) => [fill(english), said(fill(english)), fill(own)])
    .filter(([, got, wanted]) => got !== wanted);
}"""
"""Program that returns the sentences of the server that the page translates otherwise than the catalogue."""


@pytest.fixture(scope="module")
def german(browser, site):
    made = Walk(browser, site)
    made.context.add_cookies([{"name": translation.COOKIE, "value": "de", "url": site.address}])
    yield made
    made.context.close()


def test_the_page_translates_every_sentence_of_the_server(german):
    page = german.open("live")
    assert page.evaluate(TRANSLATE, translation.translation("de").said) == []
    sentences = {
        "Cannot use the image a b.png: it is a GIF image, not a PNG, JPEG, BMP, TIFF, WebP or NumPy image. Convert "
        "it to an 8-bit or 16-bit PNG, or remove it.":
        "Das Bild a b.png ist nicht brauchbar: Es ist ein GIF-Bild und kein Bild als PNG, JPEG, BMP, TIFF, WebP oder "
        "NumPy. Wandeln Sie es in ein PNG mit 8 oder 16 Bit um, oder entfernen Sie es.",
        "the images have changed: brightness 3.5, at calibration 70; share of red 1.25, at calibration 2.":
        "Die Bilder haben sich verändert: Helligkeit 3,5, bei der Kalibrierung 70; Anteil von Rot 1,25, bei der "
        "Kalibrierung 2.",
        "There is no loaded model 'image'.": "Das Modell „image“ ist nicht geladen.",
        "memory bank: finishing": "Merkmale sammeln: Abschluss",
        "Nobody knows this sentence.": "Nobody knows this sentence.",
    }  # fmt: skip
    imported = "await import(document.querySelector('script[src$=\"page.js\"]').src.replace('page.js', 'said.js'))"
    found = page.evaluate(
        f"async (texts) => {{ const {{ said }} = {imported}; return texts.map(said); }}", [*sentences]
    )
    assert found == [*sentences.values()]


VISIBLE = """() => { document.querySelectorAll('#language, .digest, [data-foreign]').forEach((one) => one.remove());
  const spoken = [...document.querySelectorAll('[aria-label], [title], img[alt]')]
    .map((one) => one.ariaLabel ?? one.title ?? one.alt);
  return [document.body.innerText, ...spoken].join('\\n'); }"""
"""Program that returns what a person reads or hears on the page."""


@pytest.mark.parametrize("tab", TABS)
def test_a_german_page_has_no_english_words(german, site, patchcore, parts, tmp_path, tab):
    if tab == "models":
        made_candidate(patchcore.model, tmp_path / "run", site.score(parts[0], "K7"))
        model, since = str(tmp_path / "run" / "model.safetensors"), run_folder.timestamp()
        made = trainings.Training(run_folder.new_id(), "zip", "patchcore", "finished", since, "anna", updates="zip")
        site.state.trainings._store(replace(made, model=model))
    page = german.open(tab)
    if tab == "try":
        broken = tmp_path / "kaputt.png"
        broken.write_bytes(parts[0].read_bytes()[:300])
        page.locator("#files").set_input_files([parts[0], broken])
        german.wait("#summary", "2 von 2")
        german.wait("#results .notice.bad", "Das Bild kaputt.png ist nicht brauchbar")
    elif tab == "threshold":
        page.locator("#rate").fill("0.1")
        page.locator("#by-rate").click()
        german.wait("#promise", "können eine Fehlalarmrate von 0,001 nicht garantieren")
    elif tab == "history":
        page.locator("#rows .link").first.click()
        page.locator("#details h2").wait_for()
    elif tab == "train":
        page.locator("input[name=name]").fill("line9")
        page.locator("input[value=folder]").check()
        page.locator("input[name=folder]").fill("../..")
        page.locator("#training button.first").click()
        german.wait("#messages-shown", "Diesen Ordner mit Bildern gibt es nicht.")
    elif tab == "models":
        german.wait(".candidate", "Es gibt 1 Fehlalarme weniger (p = 0,25), und nichts wird mehr als zufällig")
    page.wait_for_timeout(200)
    assert english_words(page.evaluate(VISIBLE)) == set()
    german.messages.clear()  # the browser itself notes refused requests


def test_every_field_has_a_name_and_the_focus_is_visible(walk):
    for tab in TABS:
        page = walk.open(tab)
        for field in page.locator("input:visible, select:visible").all():
            assert field.evaluate("(one) => one.labels.length || one.ariaLabel")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_it_logs_nothing_and_asks_no_other_host(walk, site):
    page = walk.open("live")
    assert walk.messages == []
    assert {url for url in walk.requests if not url.startswith((site.address, "data:", "blob:"))} == set()
    policy = page.request.get(site.address + "/").headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy


def test_a_lost_connection_is_shown_and_comes_back(walk, site):
    walk.open("live")
    before = walk.page.locator("#parts .tile").count()
    site.stop()
    walk.wait("#connection", "Connection lost.")
    site.start()
    walk.page.wait_for_selector('#connection[data-state="on"]', timeout=20_000)
    assert walk.page.locator("#parts .tile").count() == before


def test_a_key_opens_a_session_with_its_role(browser, patchcore, tmp_path):
    reviewer = add_key(tmp_path / "runs", "anna", "review")
    site = Site(shutil.copy(patchcore.model, tmp_path / "zip.safetensors"), tmp_path)
    walk = Walk(browser, site)
    try:
        page = walk.page
        page.goto(f"{site.address}/history")
        walk.wait("h1", "Sign in")
        page.locator("input[name=key]").fill("wrong")
        page.locator("form button").click()
        walk.wait("#messages-shown", "The key is wrong or revoked.")
        page.locator("input[name=key]").fill(reviewer.key)
        page.locator("form button").click()
        walk.wait("h1", "History")
        assert page.locator(".tabs a").all_inner_texts() == ["Live", "Try", "History", "Review"]
        assert "adctl_session" not in page.evaluate("document.cookie")
        assert page.request.get(f"{site.address}/models").headers["content-type"] == "application/problem+json"
        assert page.goto(f"{site.address}/models").status == 403
        walk.wait("h1", "You may not open Models")
        walk.wait("main", "The key “anna” has the role review. This tab needs the role admin.")
        page.locator("#language").select_option("de")
        walk.wait("main", "Dieser Reiter braucht die Rolle Verwalten.")
        page.locator("#language").select_option("en")
        walk.wait("h1", "You may not open Models")
        assert page.locator(".tabs a").all_inner_texts() == ["Live", "Try", "History", "Review"]
        page.locator("#sign-out").click()
        walk.wait("h1", "Sign in")
        assert page.request.get(f"{site.address}/v1/history").status == 401
    finally:
        walk.context.close()
        site.stop()
