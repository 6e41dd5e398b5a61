"""Declaration of settings: one call of a `Group` gives a name its default, help text and spelling as a flag.

`adctl.config` declares the settings of each command with it. `describe` turns a declared class into rows that feed
the command line, the documentation and the Python API. Imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

PREFIX = "ADCTL_"
"""Start of the name of every environment variable that adctl reads."""

SHARE = "SHARE"
"""Placeholder of numbers between 0 and 1."""

T = TypeVar("T")

_METADATA = "adctl"
_SHORT_CHOICES = 30
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


class Bounds:
    """Bounds of a number, or of the length of a list, as an annotation that pydantic reads.

    Args:
        limits: By the names of pydantic: gt, ge, lt, le, min_length, allow_inf_nan.
    """

    def __init__(self, **limits: float) -> None:
        self.limits = limits

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return {**handler(source), **self.limits}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Option:
    """One option of a command, as the help, the documentation and the Python API show it.

    Attributes:
        help: One or two sentences.
        group: Heading in the help.
        metavar: Placeholder for the value in the help.
        flag: Spelling on the command line if it is not the usual one; "" for no flag. Name of an argument in the help.
        short: One-letter flag with its dash.
        argument: Whether it is a positional argument.
        commas: Whether one text holds several values, separated by commas.
        unset: Effect of giving no value, in words.
        aliases: Further spellings on the command line that are accepted and not shown.
        synonyms: Other names that users try; errors suggest this one.
        name: Name in settings files and in Python.
        flags: Spellings on the command line.
        off: The flag that switches a Boolean off, if there is one.
        variable: Environment variable; empty for an option that is no setting.
        annotation: Python type, with its bounds.
        type: Type in words.
        default: Default value.
        shown_default: Default in words; empty when there is nothing to say.
        choices: Allowed values; empty when there is no list of them.
        bounds: Bounds in words.
        repeatable: Whether the flag may be given several times.
        boolean: Whether the flag takes no value.
    """

    help: str
    group: str
    metavar: str = ""
    flag: str | None = None
    short: str = ""
    argument: bool = False
    commas: bool = False
    unset: str = ""
    aliases: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()
    name: str = ""
    flags: tuple[str, ...] = ()
    off: str = ""
    variable: str = ""
    annotation: Any = None
    type: str = ""
    default: Any = None
    shown_default: str = ""
    choices: tuple[str, ...] = ()
    bounds: str = ""
    repeatable: bool = False
    boolean: bool = False


class Group:
    """Group of settings under one heading of the help; called, it declares a setting in a dataclass.

    Args:
        title: Heading.
    """

    def __init__(self, title: str) -> None:
        self.title = title

    def __call__(
        self,
        default: T,
        text: str,
        metavar: str = "",
        *,
        flag: str | None = None,
        argument: bool = False,
        commas: bool = False,
        unset: str = "",
        aliases: tuple[str, ...] = (),
        synonyms: tuple[str, ...] = (),
    ) -> T:
        """Declare one setting: its default, its help and, as in `Option`, what else there is to say."""
        declared = Option(
            help=text, group=self.title, metavar=metavar, flag=flag, argument=argument, commas=commas, unset=unset,
            aliases=aliases, synonyms=synonyms,
        )  # fmt: skip
        if isinstance(default, dict):
            return cast("T", dataclasses.field(default_factory=dict, metadata={_METADATA: declared}))
        return dataclasses.field(default=default, metadata={_METADATA: declared})


def switch(name: str, text: str, group: str = "General", *, short: str = "", metavar: str = "") -> Option:
    """Return an option that is no setting, such as `--list`; with a metavar it takes a value."""
    return Option(
        help=text, group=group, short=short, metavar=metavar, name=name,
        flags=tuple(filter(None, (short, flag_name(name)))), variable="", annotation=str if metavar else bool,
        type="text" if metavar else "true or false", default=None if metavar else False, boolean=not metavar,
    )  # fmt: skip


def flag_name(name: str) -> str:
    """Return the usual spelling of a setting on the command line."""
    return "--" + name.replace("_", "-")


def declared_in(cls: type) -> dict[str, Option]:
    """Return the declaration of each setting of a class, by name."""
    return {field.name: field.metadata[_METADATA] for field in dataclasses.fields(cls)}


def describe(cls: type) -> tuple[Option, ...]:
    """Return the options of a dataclass of settings, in the order of their declaration."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple(_option(field, hints[field.name]) for field in dataclasses.fields(cls))


def _option(field: dataclasses.Field[Any], annotation: Any) -> Option:
    declared: Option = field.metadata[_METADATA]
    default = {} if field.default is dataclasses.MISSING else field.default
    inner = _inner(annotation)
    several = is_several(annotation)
    values = get_args(inner)[0] if several else inner
    choices, boolean = _choices(values), inner is bool
    flag = flag_name(field.name) if declared.flag is None else declared.flag
    # A switch that is on by default, or whose default depends on something, needs a flag that switches it off.
    off = f"--no-{flag[2:]}" if boolean and flag and default is not False else ""
    metavar = declared.metavar or _metavar(values, choices, commas=declared.commas)
    listed = f" Choices: {', '.join(choices)}." if choices and metavar != "|".join(choices) else ""
    return dataclasses.replace(
        declared,
        help=declared.help + listed,
        metavar=metavar,
        name=field.name,
        flags=() if declared.argument or not flag else tuple(filter(None, (declared.short, flag, off))),
        off=off,
        variable=PREFIX + field.name.upper(),
        annotation=annotation,
        type=_type_in_words(values, several=several),
        default=default,
        shown_default=declared.unset or _default_in_words(default),
        choices=choices,
        bounds=_bounds(values),
        repeatable=(several and not declared.commas) or is_table(annotation),
        boolean=boolean,
    )


def is_several(annotation: Any) -> bool:
    """Return whether a setting of this type holds several values."""
    return get_origin(_inner(annotation)) is tuple


def is_share(annotation: Any) -> bool:
    """Return whether a setting of this type is a number between 0 and 1, which may be given in percent."""
    return any(SHARE in getattr(member, "__metadata__", ()) for member in _members(annotation))


def is_table(annotation: Any) -> bool:
    """Return whether a setting of this type holds named values."""
    return get_origin(_inner(annotation)) is dict


def _inner(annotation: Any) -> Any:
    """Return the type without None, and without the bounds of a list's length."""
    inner = _without_none(annotation)
    return _plain(inner) if get_origin(_plain(inner)) is tuple else inner


def _without_none(annotation: Any) -> Any:
    members = [member for member in _members(annotation) if member is not types.NoneType]
    return members[0] if len(members) == 1 else Union[tuple(members)]  # noqa: UP007 - built at run time


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _choices(annotation: Any) -> tuple[str, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _plain(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _metavar(values: Any, choices: tuple[str, ...], *, commas: bool) -> str:
    shown = "|".join(choices)
    if choices and len(shown) <= _SHORT_CHOICES and not commas:
        return shown
    named = [text for member in _members(values) for text in get_args(member)[1:] if isinstance(text, str)]
    if named and get_origin(values) is Annotated:
        return named[0]
    kinds = {_plain(member) for member in _members(values)}
    name = next((name for kind, name in {int: "N", float: "X", Path: "PATH"}.items() if kind in kinds), "NAME")
    return f"{name},{name}" if commas else name


def _type_in_words(values: Any, *, several: bool) -> str:
    names = {int: "whole number", float: "number", str: "text", Path: "path", bool: "true or false"}
    parts = []
    for member in _members(values):
        own = [mark.words for mark in getattr(member, "__metadata__", ()) if hasattr(mark, "words")]
        parts += own or [f"'{choice}'" for choice in _choices(member)] or [names.get(_plain(member), "table")]
    return ("list of: " if several else "") + " or ".join(parts)


def _bounds(values: Any) -> str:
    found = [
        f"{_BOUNDS[name]} {limit:g}"
        for member in _members(values)
        for bound in getattr(member, "__metadata__", ())
        if isinstance(bound, Bounds)
        for name, limit in bound.limits.items()
        if name in _BOUNDS
    ]
    return ", ".join(found)


def _default_in_words(default: Any) -> str:
    if default is None or default is False or default in ((), {}):
        return ""
    if default is True:
        return "on"
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
