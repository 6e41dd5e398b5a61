"""`python -m adctl` and the `adctl` script."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, and exit with its exit code."""
    from adctl.cli.streams import claim_stdout

    claim_stdout()
    from adctl.cli.app import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
