"""Pages that are one file each and open from disk: template, styles, scripts and data in it. Knows no metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2

_HERE = Path(__file__).parent


def template(name: str) -> jinja2.Template:
    """One of the templates beside this file; what it is given is escaped, and must be all that it asks for."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template(name)


def text_of(*names: str) -> str:
    """Styles or scripts beside this file, one after the other."""
    return "\n".join((_HERE / name).read_text(encoding="utf-8") for name in names)


def embedded(value: Any) -> str:
    """JSON that may stand inside a script element, whatever file names hold."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def plotly() -> str:
    """The drawing library."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
