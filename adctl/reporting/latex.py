"""Tables of a report or a comparison for papers, in LaTeX with the package booktabs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from adctl import __version__, files
from adctl.names import printable
from adctl.reporting.comparison_page import compared_tables
from adctl.reporting.content import ABSENT, DEFAULT_OPTIONS, ReportOptions, Table, build_content

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from adctl.evaluation.compare import SetComparison
    from adctl.evaluation.evaluate import Evaluation
    from adctl.evaluation.match_images import SharedScores
    from adctl.scoring.score_set import ScoreSet

_HEAD = f"""% Made by adctl {__version__}. In the preamble:
% \\usepackage[utf8]{{inputenc}}
% \\usepackage[T1]{{fontenc}}
% \\usepackage{{booktabs}}
% Names in scripts other than Latin need XeLaTeX or LuaLaTeX.
"""
_NUMBER = re.compile(rf"[-+\u2212<▸\s]*\d|{ABSENT}|$")
_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "±": r"$\pm$", ABSENT: "--", "“": "``", "”": "''",
    "▸": r"$\triangleright$", "·": r"$\cdot$", **{char: f"\\{char}" for char in "&%$#_{}"},
}  # fmt: skip


def write_latex(
    scores: ScoreSet, evaluation: Evaluation, target: Path, options: ReportOptions = DEFAULT_OPTIONS
) -> None:
    """Write the metrics, and those of each defect type and size, as LaTeX tables.

    Raises:
        OutputError: The file cannot be written.
    """
    content = build_content(scores, evaluation, options.title)
    metrics = [
        (f"{group}: {card.name}", card.value, card.interval) for group, cards in content.cards.items() for card in cards
    ]
    interval = f"{content.interval_level} interval".strip()
    counts = f"{evaluation.image.good} good and {evaluation.image.defective} defective images."
    tables = [Table("Metrics", ("Metric", "Value", interval), tuple(metrics), counts)] if metrics else []
    tables += [*content.tables, *([content.distributions] if content.distributions else [])]
    write_tables(target, content.title, tables)


def write_comparison_tables(
    sets: Sequence[SharedScores], comparison: SetComparison, target: Path, *, title: str | None = None
) -> Path:
    """Write the metrics of compared sets, those of each defect type, and the tests as LaTeX tables.

    Args:
        sets: Not used; the comparison holds all numbers.
        comparison: Result of the comparison.
        target: File to write.
        title: First words of each caption; by default the names of the sets.

    Raises:
        OutputError: The file cannot be written.
    """
    del sets
    names = ", ".join(result.name for result in comparison.sets)
    write_tables(target, title or names, compared_tables(comparison))
    return target


def write_tables(target: Path, title: str, tables: Iterable[Table]) -> None:
    r"""Write tables as one LaTeX file to be included by `\input`.

    Args:
        target: File to write.
        title: First words of each caption.
        tables: Tables to write.

    Raises:
        OutputError: The file cannot be written.
    """
    files.write_text(target, "\n".join([_HEAD, *(_table(title, table) for table in tables)]))


def _table(title: str, table: Table) -> str:
    label = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")
    caption = f"{title}: {table.title[:1].lower()}{table.title[1:]}. {table.note}".strip()
    lines = [
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{escape(caption)}}}",
        f"  \\label{{tab:{label}}}",
        f"  \\begin{{tabular}}{{{_alignment(table)}}}",
        r"    \toprule",
        _row(table.headers),
        r"    \midrule",
        *map(_row, table.rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _alignment(table: Table) -> str:
    """Return the alignment of each column: numbers to the right, texts and the first column to the left."""
    columns = zip(*table.rows, strict=True)
    are_numbers = [all(_NUMBER.match(cell) for cell in column) for column in columns] or [True] * len(table.headers)
    return "l" + "".join("r" if is_number else "l" for is_number in are_numbers[1:])


def _row(cells: Sequence[str]) -> str:
    row = " & ".join(map(escape, cells))
    begins_as_option = row.startswith(("[", "*"))  # of the \\ before it
    return f"    {'{}' * begins_as_option}{row} \\\\"


def escape(text: str) -> str:
    """Escape text so that LaTeX shows it unchanged; names of defects may contain any character."""
    escaped = "".join(_SPECIAL.get(char, char) for char in printable(" ".join(text.split())))
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", escaped)  # a minus sign, not a hyphen
