"""An extension of the documentation build: shows functions that the stub declares by overloads alone."""

from __future__ import annotations

from typing import Any

import griffe


class Overloads(griffe.Extension):
    """Take the overload that has the docstring for the function."""

    def on_function_instance(self, *, func: griffe.Function, agent: Any, **_: Any) -> None:
        """Make a documented overload a member of its module."""
        if func.docstring and func.name in agent.current.overloads and func.name not in agent.current.members:
            agent.current.set_member(func.name, func)
