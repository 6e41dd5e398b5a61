"""Command `adctl tune`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.config import TuneSettings
    from adctl.tuning.study import Candidate, TuneResult

_SHOWN_IMPORTANCES = 3


def run(call: Call[TuneSettings]) -> None:
    """Tune a detector and show the best settings."""
    from adctl.tuning import tune

    result = tune(call.loaded, call.reporter)
    call.finish(result, lambda: _text(result))


def _text(result: TuneResult) -> RenderableType:
    from rich.console import Group

    candidates = [_line(one, result) for one in (*result.candidates, result.default)]
    table = rows(candidates, "settings", f"{result.objective[0]}, fresh seeds", "", "values")
    main = [f"{name} {share:.0%}" for name, share in list(result.importances.items())[:_SHOWN_IMPORTANCES]]
    gain = result.candidates[0].mean - result.default.mean
    noise = "larger than the noise" if result.significant else "within the noise: the defaults are kept"
    facts = [
        ("trials", f"{result.trials}, of which {result.pruned} were stopped early and {result.failed} failed"),
        ("gain", f"{gain:+.4f}, {noise}"),
        *([("mattered", ", ".join(main))] if main else []),
        ("settings", str(result.params_file)),
        ("page", str(result.page)),
        *([("model", str(result.model))] if result.model else []),
        ("next", "adctl score" if result.model else f"adctl train --config {result.params_file}"),
    ]
    return Group(table, "", rows(facts))


def _line(one: Candidate, result: TuneResult) -> tuple[str, ...]:
    name = "default" if one.trial is None else f"trial {one.trial}"
    chosen = " (chosen)" if one == result.chosen else ""
    values = [
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in one.params.items()
    ]
    return name + chosen, f"{one.mean:.4f}", f"+- {one.error:.4f}", ", ".join(values)
