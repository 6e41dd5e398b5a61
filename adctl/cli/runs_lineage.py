"""Command `adctl runs lineage`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.names import printable

if TYPE_CHECKING:
    from rich.tree import Tree

    from adctl.cli.output import Call
    from adctl.config import RunsLineageSettings
    from adctl.tracking.lineage import LineageNode


def run(call: Call[RunsLineageSettings]) -> None:
    """Show the lineage of a run as a tree."""
    from adctl.tracking import queries
    from adctl.tracking.lineage import lineage_of

    root = lineage_of(queries.find_folder(call.settings.runs, call.settings.run))
    call.finish(root, lambda: _tree(root))


def _tree(node: LineageNode) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    words = [word for word in (node.path, *node.facts) if word]
    tree = Tree(Text.assemble((node.kind, "bold"), "  ", printable("  ".join(words))))
    for child in node.children:
        tree.children.append(_tree(child))
    return tree
