"""Text of `adctl train --update`: what was learned, and the comparison with the present model."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from adctl.cli.output import rows

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.evaluation.candidate import CandidateComparison, PairedTest
    from adctl.training.reviews import UpdateResult

_SHOWN = 10


def update_text(update: UpdateResult) -> RenderableType:
    """Return what the candidate learned from, and how it compares with the model that it updates."""
    from rich.console import Group
    from rich.padding import Padding

    counts = Counter(one.reason for one in update.set_aside)
    aside = ", ".join(f"{reason}: {count}" for reason, count in counts.items()) or "none"
    unlike = [one for one in update.set_aside if one.reason in ("unlike the others", "also a defect")]
    lines = [
        ("updates", str(update.present)),
        _source(update),
        ("set aside", aside),
        *((one.reason, f"{one.path}: {one.detail}") for one in unlike[:_SHOWN]),
        *([("", f"and {len(unlike) - _SHOWN} more; --json lists them")] if len(unlike) > _SHOWN else []),
        *(("note", note) for note in (*update.notes, *update.comparison.notes)),
    ]
    return Group(rows(lines), Padding(comparison_text(update.comparison), (1, 0, 0, 0)))


def _source(update: UpdateResult) -> tuple[str, str]:
    if update.way == "threshold alone":
        return "threshold from", f"{update.held_out} new good images; the candidate learned nothing else"
    return "learned from", f"{update.learned} new good images; {update.way}"


def comparison_text(found: CandidateComparison) -> RenderableType:
    """Return rates of each model, the images whose verdict changes, and the recommendation."""
    from rich.console import Group
    from rich.padding import Padding

    table = [
        (
            one.name,
            f"{one.threshold:.6g}",
            f"at most {_percent(one.promised_false_alarm)}"
            if one.promised_false_alarm
            else f"about {_percent(one.expected_false_alarm)}",
            str(one.false_alarms or "-"),
            str(one.recall or "-"),
        )
        for one in found.models
    ]
    changed = [
        (f"{one.label}: {one.path}", f"{one.before} -> {one.after} ({one.score_before:.4g} -> {one.score_after:.4g})")
        for one in found.changed[:_SHOWN]
    ]
    if len(found.changed) > _SHOWN:
        changed.append(("", f"and {len(found.changed) - _SHOWN} more; --json lists them"))
    result = [
        ("false alarms", _test(found.false_alarms)),
        ("recall", _test(found.recall)),
        ("recommendation", f"{found.recommendation}. {found.reason}"),
    ]
    return Group(
        rows(table, "model", "threshold", "expected", "false alarms (95 % interval)", "recall (95 % interval)"),
        *([Padding(rows(changed, "verdict changes", ""), (1, 0, 0, 0))] if changed else []),
        Padding(rows(result), (1, 0, 0, 0)),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _test(test: PairedTest) -> str:
    images = "image" if test.better == 1 else "images"
    return f"{test.better} {images} better, {test.worse} worse; p = {test.p_value:.2g} (exact paired test)"
