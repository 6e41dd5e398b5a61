"""Command `adctl runs list`."""

from adctl.cli.runs import run

__all__ = ["run"]
