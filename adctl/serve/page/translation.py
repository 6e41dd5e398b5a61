"""Sentences of the page in several languages: one file a language, one key a sentence.

A key that ends in `.one` or `.other` is a form for a count; `{name}` in a sentence is replaced by a value. Keys that
begin with `said.` are sentences that the server or the library words in English, such as errors and remarks: the page
finds the translation by the English sentence.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_ENGLISH = "en"
LANGUAGES = {_ENGLISH: "English", "de": "Deutsch"}
"""Languages of the page and their own names; the first one is used if the browser wants none of them."""

COOKIE = "adctl_language"
"""Cookie that holds the chosen language."""

SAID = "said."
"""Beginning of the keys of sentences that the server words."""

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Translation:
    """Sentences of one language.

    Attributes:
        language: Code of the language, such as `en`.
        messages: Sentences by key.
    """

    language: str
    messages: Mapping[str, str]

    def __call__(self, key: str, **values: Any) -> str:
        """Return a sentence with its values; `count` chooses the form.

        Raises:
            KeyError: There is no such sentence.
        """
        if "count" in values:
            form = f"{key}.{'one' if values['count'] == 1 else 'other'}"
            key = form if form in self.messages else key
        return _PLACEHOLDER.sub(lambda match: str(values[match[1]]), self.messages[key])

    @property
    def own(self) -> dict[str, str]:
        """Sentences of the page itself, by key."""
        return {key: sentence for key, sentence in self.messages.items() if not key.startswith(SAID)}

    @property
    def said(self) -> list[tuple[str, str]]:
        """Sentences of the server, each in English and in this language; empty if this language is English."""
        english = translation(_ENGLISH).messages
        return [
            (english[key], sentence)
            for key, sentence in self.messages.items()
            if key.startswith(SAID) and self.language != _ENGLISH
        ]


def preferred_language(chosen: str | None, accepted: str | None) -> str:
    """Return the language of a page.

    Args:
        chosen: Language that the user chose, or None.
        accepted: Header `Accept-Language` of the browser, or None.
    """
    if chosen in LANGUAGES:
        return str(chosen)
    weighted = []
    for position, entry in enumerate((accepted or "").split(",")):
        name, _, weight = entry.partition(";q=")
        weighted.append((-_weight(weight), position, name.strip().lower().split("-")[0]))
    return next((name for _, _, name in sorted(weighted) if name in LANGUAGES), next(iter(LANGUAGES)))


def _weight(text: str) -> float:
    try:
        return float(text) if text else 1.0
    except ValueError:
        return 0.0


@cache
def translation(language: str) -> Translation:
    """Return the sentences of a language."""
    file = resources.files(__package__) / "messages" / f"{language}.json"
    return Translation(language, json.loads(file.read_text(encoding="utf-8")))
