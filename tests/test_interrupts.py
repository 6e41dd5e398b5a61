"""An interrupt that Python loses is sent again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from conftest import ROOT

LOST = """
import os, signal
from adctl.cli import interrupts
from adctl.cli.output import RichReporter

interrupts.install()

class Drops:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass

with RichReporter(quiet=True).stage("work") as update:
    Drops()
    print("dropped", flush=True)
    update(1, 2)
"""


def test_an_interrupt_lost_in_a_destructor_is_raised_at_the_next_progress():
    done = subprocess.run(
        [sys.executable, "-c", LOST], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout == "dropped\n"
    assert done.returncode in (1, -signal.SIGINT)
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
