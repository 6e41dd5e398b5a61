"""The server's own words on the page: each English sentence of the code has a translation, and each is in use."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

import adctl
from adctl.serve.page import translation

ADCTL = Path(adctl.__file__).parent
MESSAGES = Path(translation.__file__).parent / "messages"
OTHERS = [name for name in translation.LANGUAGES if name != "en"]

RAISING = [
    file
    for file in sorted((ADCTL / "serve").rglob("*.py"))
    if file.stem not in ("keys", "server", "sizes", "processes", "state", "runs_view")
]  # fmt: skip
"""Modules whose errors the page shows; the others speak to the terminal or to programs."""

SPEAKING = [
    ADCTL / name
    for name in (
        "data/images.py", "evaluation/candidate.py", "files.py", "model_file.py", "runtimes/loading.py",
        "thresholds/conformal.py", "thresholds/contaminated.py", "thresholds/drift.py", "tracking/database.py",
        "training/new_images.py", "training/present_model.py", "training/reviews.py", "training/update.py",
        "training/update_calibration.py",
    )
]  # fmt: skip
"""Modules of the library all of whose sentences may come to the page."""

NEVER_SHOWN = {
    "give threshold, max_false_alarm or undo, and only one of them",
    "{} {}", " (and {} more)", " of {} bits", "it is {}, ", "{}not a PNG, JPEG, BMP, TIFF, WebP or NumPy image",
    "not a database",
    "a third, from trained weights", "new images alone", "old and new images", "threshold alone",
    "unlike the others", "also a defect",
    "{} of {}, {} % ({} to {} %)", "no evidence of a difference", "do not accept",
    "Omit --runtime, or give the model.safetensors or a file that ends in {}.",
    "{} is a file for the runtime '{}', not for '{}'.", "it is ", "Leave out --precision, or use --runtime torch.",
    "The precision of a file for the runtime '{}' was chosen when it was exported, so --precision {} has no effect.",
}  # fmt: skip
"""Parts of sentences, names of states, and sentences for the terminal alone."""

FROM_ELSEWHERE = (
    "said.os_", "said.database_", "said.not_found", "said.method_not_allowed",
    "said.image_other", "said.image_no_image",    "said.review_count_", "said.too_many_f",
)  # fmt: skip
"""Words of the operating system, of databases and of Starlette, and sentences that the code joins of parts."""

_SQL = re.compile(r"(PRAGMA|BEGIN|SELECT)\b")
_PROSE = re.compile(r"[a-z]{2} |^ .*[a-z]{2}")
_CALLED = re.compile(r"Error$|^(problem|busy)$")


def template(node: ast.AST) -> str | None:
    """Return a string of the code with `{}` for each of its values; None if the node is none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def name_of(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def arguments_of(node: ast.AST) -> list[ast.AST]:
    both = [[one.body, one.orelse] if isinstance(one, ast.IfExp) else [one] for one in getattr(node, "args", [])]
    return [one for pair in both for one in pair]


def errors_in(file: Path) -> set[str]:
    """Return the sentences of the errors that a module raises."""
    calls = [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call)]
    found = (template(one) for call in calls if _CALLED.search(name_of(call)) for one in arguments_of(call))
    return {text for text in found if text and " " in text}


def strings_in(file: Path) -> set[str]:
    """Return the strings of a module except its docstrings, its log and its patterns."""
    tree = ast.parse(file.read_text("utf-8"))
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            skipped.add(id(node.value))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("log.", "re.compile")):
            skipped.update(id(part) for one in node.args for part in ast.walk(one))
        elif isinstance(node, ast.JoinedStr):
            skipped.update(id(part) for part in node.values)
    found = (template(node) for node in ast.walk(tree) if id(node) not in skipped)
    return {text for text in found if text}


def messages(language: str) -> dict[str, str]:
    known = json.loads((MESSAGES / f"{language}.json").read_text("utf-8"))
    return {key: text for key, text in known.items() if key.startswith(translation.SAID)}


def plain(sentence: str) -> str:
    return re.sub(r"\{\w+\}", "{}", sentence)


def test_every_sentence_that_the_page_may_show_is_in_the_catalogue():
    known = {plain(sentence) for sentence in messages("en").values()}
    said = {text for file in RAISING for text in errors_in(file)}
    said |= {text for file in SPEAKING for text in strings_in(file) if _PROSE.search(text) and not _SQL.match(text)}
    assert said - known - NEVER_SHOWN == set()


def test_every_sentence_of_the_catalogue_is_in_the_code():
    files = [file for file in ADCTL.rglob("*.py") if file.parts[-2] not in ("cli", "fetching")]
    said = {text for file in files for text in strings_in(file)}
    unused = {key for key, sentence in messages("en").items() if plain(sentence) not in said}
    assert {key for key in unused if not key.startswith(FROM_ELSEWHERE)} == set()


ENGLISH = frozenset(
    [
        "the", "is", "are", "of", "and", "with", "this", "that", "has", "have", "cannot", "there", "from", "by",
        "which", "for", "its", "not", "image", "images", "good", "defect", "defects", "model", "models", "candidate",
        "score", "scores", "threshold", "file", "files", "present", "does", "no", "none", "give", "send", "look", "it",
    ]
)  # fmt: skip
"""Frequent English words that German has not."""


def english_words(text: str) -> set[str]:
    """Return the English words of a German text; names in quotation marks, options and code do not count."""
    prose = re.sub(
        r"„[^“]*“|--[\w-]+|'[^']*'|\b(adctl|pip|git|GET)\b[ \w/.-]*|\{\w+\}|[\w-]*[._/=][\w./=-]*", " ", text
    )
    return {word for word in re.findall(r"[A-Za-zÄÖÜäöüß]+", prose) if word.lower() in ENGLISH}


@pytest.mark.parametrize("language", OTHERS)
def test_no_message_of_another_language_is_english(language):
    english, other = translation.translation("en").messages, translation.translation(language).messages
    found = {key: english_words(other[key]) for key in english}
    assert {key: words for key, words in found.items() if words} == {}
    same = {key for key in english if english[key] == other[key] and re.search(r"[a-z]{3} [a-z]{2}", english[key])}
    assert same == set()


def test_an_english_page_carries_no_second_language():
    english, german = translation.translation("en"), translation.translation("de")
    assert english.said == []
    assert len(german.said) == len(messages("de"))
    assert not [key for key in german.own if key.startswith(translation.SAID)]
