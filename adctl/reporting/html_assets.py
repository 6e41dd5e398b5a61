"""Templates, styles, scripts and data for HTML pages that consist of one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from adctl.files import to_json

_HERE = Path(__file__).parent


def template(name: str) -> jinja2.Template:
    """Load a template from this folder; values are escaped, and a missing value is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template(name)


def read_assets(*names: str) -> str:
    """Read style or script files from this folder and join them."""
    return "\n".join((_HERE / name).read_text(encoding="utf-8") for name in names)


def to_script_json(value: Any) -> str:
    """Convert a value to JSON that is safe inside a script element, whatever characters its strings contain."""
    text = to_json(value)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def plotly() -> str:
    """Return the JavaScript of the chart library."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
