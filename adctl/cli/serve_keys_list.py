"""Command `adctl serve keys list`."""

from adctl.cli.serve_keys import run

__all__ = ["run"]
