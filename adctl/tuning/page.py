"""Page about a tuning: its result in words, and Optuna's plots."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from adctl import __version__, files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import optuna

    from adctl.tuning.study import Candidate

_PARETO = 2
_SHOWN_IMPORTANCES = 3


def write_page(
    path: Path,
    study: optuna.Study,
    candidates: Sequence[Candidate],
    default: Candidate,
    importances: dict[str, float],
    *,
    significant: bool,
) -> None:
    """Write the page, one file that needs no network.

    Raises:
        OutputError: It cannot be written.
    """
    import plotly.offline

    plots = [f"<h2>{escape(title)}</h2>{html}" for title, html in _plots(study)]
    rows = "".join(_row(one) for one in (*candidates, default))
    files.write_text(
        path,
        f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="generator" content="adctl {__version__}"><meta name="viewport" content="width=device-width">
<title>Tuning {escape(study.study_name)}</title><script>{plotly.offline.get_plotlyjs()}</script>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse;display:block;overflow-x:auto}}
td,th{{padding:.2rem .8rem;vertical-align:top;text-align:left;border-bottom:1px solid #ccc}}
</style></head><body><h1>Tuning {escape(study.study_name)}</h1>
<p>{escape(_words(study, candidates, default, importances, significant=significant))}</p>
<table><tr><th>settings</th><th>{escape(_objective(study))}, fresh seeds</th><th>standard error</th><th>values</th></tr>
{rows}</table>{"".join(plots)}</body></html>
""",
    )


def _objective(study: optuna.Study) -> str:
    return str(study.user_attrs["objective"][0])


def _words(
    study: optuna.Study,
    candidates: Sequence[Candidate],
    default: Candidate,
    importances: dict[str, float],
    *,
    significant: bool,
) -> str:
    best = candidates[0]
    gain = f"{_objective(study)} {best.mean:.4f}, with the default settings {default.mean:.4f}."
    verdict = (
        "The gain is larger than the noise." if significant else "The gain is within the noise: the defaults are kept."
    )
    main = [f"{name} ({share:.0%})" for name, share in list(importances.items())[:_SHOWN_IMPORTANCES]]
    mattered = f" Most of the differences between trials come from {', '.join(main)}." if main else ""
    return (
        f"The best settings reach {gain} {verdict}{mattered} All values are from generated or given defects on "
        "held-out good images; no test image was read."
    )


def _row(one: Candidate) -> str:
    name = "default" if one.trial is None else f"trial {one.trial}"
    values = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in one.params.items()
    )
    cells = (name, f"{one.mean:.4f}", f"{one.error:.4f}", values)
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _plots(study: optuna.Study) -> list[tuple[str, str]]:
    """Return titles and HTML of the plots that the trials allow."""
    from optuna import visualization

    several = len(study.directions) >= _PARETO
    target: dict[str, Any] = (
        {"target": lambda trial: trial.values[0], "target_name": _objective(study)} if several else {}
    )
    lowest: dict[str, Any] = {**target, "target": lambda trial: -trial.values[0]} if several else {}
    makers: dict[str, Callable[[], Any]] = {
        "History": lambda: visualization.plot_optimization_history(study, **target),
        "Importance of settings": lambda: visualization.plot_param_importances(study, **lowest),
        "Each setting": lambda: visualization.plot_slice(study, **target),
        "All settings together": lambda: visualization.plot_parallel_coordinate(study, **target),
        **({"Best compromises": lambda: visualization.plot_pareto_front(study)} if several else {}),
    }
    plots = []
    for title, make in makers.items():
        try:
            figure = make()
        except (ValueError, RuntimeError):  # too few trials for this plot
            continue
        # The page has headings of its own, and Optuna gives some plots a width beyond that of the page.
        figure.update_layout(title=None, width=None, autosize=True, margin={"t": 24})
        shown = {"displayModeBar": False, "responsive": True}
        plots.append((title, figure.to_html(full_html=False, include_plotlyjs=False, config=shown)))
    return plots
