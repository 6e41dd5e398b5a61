"""A hook of the documentation build: fills `commands.md` with a table of options for each command."""

from __future__ import annotations

from typing import Any

from adctl.config import Option, options_of

PLACE = "<!-- tables of options -->"
COMMANDS = ("fetch", "fetch check", "fetch weights", "fetch bundle", "fetch verify", "train", "calibrate", "score",
            "report", "export", "bench", "serve", "serve keys add", "demo", "schema")  # fmt: skip


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables where the page asks for them."""
    return markdown.replace(PLACE, "\n".join(_section(command) for command in COMMANDS))


def _section(command: str) -> str:
    rows = "\n".join(_row(option) for option in options_of(command))
    return f"## adctl {command}\n\n| option | meaning | default |\n|---|---|---|\n{rows}\n"


def _row(option: Option) -> str:
    return f"| {_name(option)} | {_escaped(option.help)} | {_escaped(str(option.shown_default or ''))} |"


def _name(option: Option) -> str:
    if option.flags:
        return ", ".join(f"`{flag}`" for flag in option.flags)
    return f"`{option.metavar}`" if option.argument else f"`{option.name}` (only in settings files)"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
