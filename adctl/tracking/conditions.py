"""Conditions and orders of the list of runs, as SQL of SQLite or of PostgreSQL.

They are texts and not expressions of SQLAlchemy, whose import takes longer than the query.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from adctl.errors import UsageError

_CONDITION = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(<=|>=|!=|=|<|>|~)\s*([^\s=<>~].*?)\s*")
_AND = re.compile(r"\s+and(?:\s+|$)", re.IGNORECASE)
_NAME = re.compile(r"[\w.\- ]+")
_NUMBERS = ("seed", "images", "seconds")
DOCUMENTS = ("tags", "metrics", "settings")
"""Columns that hold JSON."""
COLUMNS = ("id", "name", "folder", "state", "started", "finished", "arch", "dataset", "category", *_NUMBERS, "model",
           "model_sha256", "images_sha256", "version", "machine", "tags", "note", "metrics", "settings")  # fmt: skip
"""Columns of the table of runs."""
_TEXTS = tuple(name for name in COLUMNS if name not in (*_NUMBERS, *DOCUMENTS))
_ESCAPED = str.maketrans({"/": "//", "%": "/%", "_": "/_"})


@dataclass(frozen=True)
class Sql:
    """Part of a question.

    Attributes:
        text: SQL with a placeholder for each value.
        values: Values of the placeholders.
    """

    text: str
    values: tuple[str | float, ...] = ()


class Dialect:
    """Writer of SQL.

    Args:
        server: Whether for PostgreSQL, otherwise for SQLite.
    """

    def __init__(self, *, server: bool) -> None:
        self._server = server
        self.mark = "%s" if server else "?"

    def conditions(self, texts: tuple[str, ...]) -> Sql:
        """Return conditions such as `arch=patchcore and image_auroc>0.95`, joined; each text may hold several.

        Raises:
            UsageError: A condition cannot be understood.
        """
        parts = [self._condition(part) for text in texts for part in _AND.split(text)]
        joined = " AND ".join(f"({part.text})" for part in parts)
        return Sql(joined or "1 = 1", tuple(value for part in parts for value in part.values))

    def order(self, name: str) -> str:
        """Return what runs are sorted by: a column, a metric or a setting; with a minus sign the highest first.

        Raises:
            UsageError: The name has characters that no name has.
        """
        bare = name.removeprefix("-")
        if not _NAME.fullmatch(bare):
            raise UsageError(f"Runs cannot be sorted by '{bare}'.", "Name a column, a metric or a setting.")
        key = bare if bare in _TEXTS else self._number(bare)
        return f"{key} IS NULL, {key} {'DESC' if name.startswith('-') else 'ASC'}, id"

    def begins(self, column: str, text: str) -> Sql:
        """Return that a column begins with a text."""
        return Sql(f"{column} LIKE {self.mark} ESCAPE '/'", (f"{text.translate(_ESCAPED)}%",))

    def _condition(self, text: str) -> Sql:
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise UsageError(
                f"The condition '{text}' cannot be understood.",
                "Write NAME, one of = != < <= > >= ~, and a value, such as 'arch=patchcore and image_auroc>0.95'.",
            )
        name, operator, value = match.groups()
        if name in ("tag", "tags"):
            found = self._contains("CAST(tags AS VARCHAR)", json.dumps(value))
            return found if operator in ("=", "~") else Sql(f"NOT {found.text}", found.values)
        number = _float(value)
        if operator == "~":
            return self._contains(f"LOWER({self._text(name)})", value.lower())
        if name in _TEXTS or number is None:
            return self._compare(self._text(name), operator, value)
        return self._compare(self._number(name), operator, number)

    def _compare(self, one: str, operator: str, value: str | float) -> Sql:
        unknown = f" OR {one} IS NULL" if operator == "!=" else ""
        return Sql(f"{one} {operator} {self.mark}{unknown}", (value,))

    def _contains(self, one: str, value: str) -> Sql:
        return Sql(f"{one} LIKE {self.mark} ESCAPE '/'", (f"%{value.translate(_ESCAPED)}%",))

    def _text(self, name: str) -> str:
        if name in _TEXTS:
            return name
        return f"CAST({name} AS VARCHAR)" if name in _NUMBERS else self._entry("settings", name)

    def _number(self, name: str) -> str:
        if name in _NUMBERS:
            return name
        metric, setting = self._entry("metrics", name), self._entry("settings", name)
        if not self._server:
            return f"COALESCE({metric}, CAST({setting} AS REAL))"
        is_number = f"{setting} ~ '^[-+]?[0-9.]+([eE][-+]?[0-9]+)?$'"
        return f"COALESCE(CAST({metric} AS FLOAT), CASE WHEN {is_number} THEN CAST({setting} AS FLOAT) END)"

    def _entry(self, column: str, name: str) -> str:
        return f"({column} ->> '{name}')" if self._server else f"""json_extract({column}, '$."{name}"')"""


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
