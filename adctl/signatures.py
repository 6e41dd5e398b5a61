"""Python functions whose parameters are the settings of a command: signature, docstring and checks.

`from_settings` makes one. Types are texts, as they stand in the stub; `StrPath` is `str | os.PathLike[str]`.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import textwrap
import types
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from adctl.config import CommandSettings, LoadedSettings, load, names_of, options_of
from adctl.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adctl.options import Option

S = TypeVar("S", bound=CommandSettings)
R = TypeVar("R")

WIDTH = 112
"""Longest line of a docstring, without its indent."""

_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
_PATHS = {"calibration", "images", "roi", "weights"}
"""Settings that hold paths as texts, because they also accept patterns or other words."""

_COMMAND_LINE_WORDS = {
    "; repeatable": "",
    "; in settings files": "",
    ", also with --dry-run": "",
    "Exit with code 3 if": "A gate fails if",
    "exit with code 3 if": "a gate fails if",
    "several with commas": "several as a list",
    "both with a comma": "a list of both",
}
"""Words of help texts, with their replacements in the Python docstrings."""

_NAMES = {Path: "StrPath", types.NoneType: "None", Any: "Any"}


def from_settings(
    cls: type[S],
    *,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    required: Sequence[str] = (),
    positional: Sequence[str] = (),
    accepts: Mapping[str, str] | None = None,
) -> Callable[[Callable[[LoadedSettings[S]], R]], Callable[..., R]]:
    """Turn a function of loaded settings into a function of keywords.

    Args:
        cls: Class of the settings, which declares names, types, defaults and texts.
        only: Settings that the function takes; all when empty.
        without: Settings that only the command takes.
        required: Settings without a default.
        positional: Settings that may be given by position, in addition to the arguments of the command.
        accepts: Types of settings that accept more in Python, such as a list instead of a text with commas.
    """
    wider = accepts or {}
    options = [
        option
        for option in options_of(cls.command)
        if option.variable and option.name not in without and option.name in (only or names_of(cls))
    ]
    first = {option.name for option in options if option.argument or option.name in positional}
    options.sort(key=lambda option: option.name not in first)
    parameters = {option.name: _parameter(option, wider.get(option.name)) for option in options}
    for name in first:
        parameters[name] = parameters[name].replace(kind=_POSITIONAL)
    for name in required:
        parameters[name] = _without_default(parameters[name])
    joined = {option.name for option in options if option.name in wider and not option.repeatable}

    def decorate(run: Callable[[LoadedSettings[S]], R]) -> Callable[..., R]:
        @functools.wraps(run)
        def call(*arguments: Any, **settings: Any) -> R:
            given = _given(f"adctl.{run.__name__}", cls, parameters, arguments, settings)
            return run(load(cls, {name: _plain(value, joined=name in joined) for name, value in given.items()}))

        returns = run.__annotations__["return"]
        vars(call)["__signature__"] = inspect.Signature(list(parameters.values()), return_annotation=returns)
        call.__annotations__ = {one.name: one.annotation for one in parameters.values()} | {"return": returns}
        call.__doc__ = _document(inspect.getdoc(run) or "", options)
        return call

    return decorate


def _parameter(option: Option, accepted: str | None) -> inspect.Parameter:
    annotation = accepted or _type_text(option.annotation, paths=option.name in _PATHS)
    default = option.default
    if isinstance(default, Path):
        default = str(default)
    elif default == {} or (accepted and default == ()):
        default = None
        annotation = annotation if annotation.endswith("| None") else f"{annotation} | None"
    return inspect.Parameter(option.name, _KEYWORD, default=default, annotation=annotation)


def _without_default(parameter: inspect.Parameter) -> inspect.Parameter:
    return parameter.replace(default=inspect.Parameter.empty, annotation=parameter.annotation.removesuffix(" | None"))


def _type_text(annotation: Any, *, paths: bool) -> str:
    """Return a type as source text, without bounds; a list is also taken as a single value."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_text(inside[0], paths=paths)
    if origin is Literal:
        return f"Literal[{', '.join(_source(value) for value in inside)}]"
    if origin in (Union, types.UnionType):
        return " | ".join(_type_text(member, paths=paths) for member in inside)
    if origin is tuple:
        one = _type_text(inside[0], paths=paths)
        return f"{one} | Sequence[{one}]"
    if origin is dict:
        return "Mapping[str, Any]"
    return "StrPath" if annotation is str and paths else _NAMES.get(annotation) or annotation.__name__


def _source(value: Any) -> str:
    """Return a value as source text, with double quotes."""
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _given(
    function: str,
    cls: type[CommandSettings],
    parameters: Mapping[str, inspect.Parameter],
    arguments: Sequence[Any],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the settings of a call by name.

    Raises:
        UsageError: There are too many arguments, one is given twice or missing, or the function has no such setting.
    """
    places = [name for name, parameter in parameters.items() if parameter.kind is _POSITIONAL]
    if len(arguments) > len(places):
        expected = f"only {', '.join(places)}" if places else "nothing"
        raise UsageError(f"{function} takes {expected} by position.", "Give settings by name, such as runs='runs'.")
    by_place = dict(zip(places, arguments, strict=False))
    for name in settings:
        if name in by_place:
            raise UsageError(f"{function} was given '{name}' twice.", "Give it once.")
        if name in names_of(cls) and name not in parameters:
            raise unknown_name(f"setting of {function}", name, parameters)
    given = by_place | dict(settings)
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and given.get(name) is None:
            raise UsageError(f"{function} needs '{name}'.", f"See help({function}).")
    return given


def _plain(value: Any, *, joined: bool) -> Any:
    """Return a value as a settings file holds it: paths as texts, and lists as one text where a setting is a text."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        values = [_plain(one, joined=False) for one in value]
        return ",".join(values) if joined and all(isinstance(one, str) for one in values) else values
    if joined and isinstance(value, Mapping):
        return ",".join(f"{name}={weight}" for name, weight in value.items())
    return value


# ---- docstrings


def _document(text: str, options: Sequence[Option]) -> str:
    """Return a function's docstring with a section of its arguments before what it returns and raises."""
    before, mark, after = text.partition("\n\nReturns:")
    flags = {flag: option.name for option in options for flag in option.flags}
    lines = [_argument_text(option, flags) for option in options]
    return "\n".join([before, "", "Args:", *lines]) + mark + after


def _argument_text(option: Option, flags: Mapping[str, str]) -> str:
    text = option.help
    if option.bounds:
        text += f" {option.bounds[0].upper()}{option.bounds[1:]}."
    if option.unset:
        text += f" Default: {option.unset}."
    for words, replacement in _COMMAND_LINE_WORDS.items():
        text = text.replace(words, replacement)
    text = re.sub(r"--[a-z][a-z0-9-]*", lambda match: f"`{flags.get(match[0], match[0])}`", text)
    return textwrap.fill(
        f"{option.name}: {text}", WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 8, break_on_hyphens=False
    )
