"""Processes that run `python -m adctl`, forked from one that has imported the large libraries, but nothing of adctl.

A test that calls the command line then does not wait seconds for PyTorch to be imported again. Each call is a process
with its own folder, environment and streams, as if it had been started anew.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import io
import json
import os
import runpy
import select
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

LIBRARIES = [
    "torch", "torch._dynamo", "torch.distributed", "torchvision", "cv2", "PIL.Image", "h5py", "sklearn.metrics",
    "scipy.stats", "pydantic", "typer", "rich.progress", "pygments.lexers", "yaml", "jinja2", "huggingface_hub.hf_api",
    "filelock", "sqlalchemy", "optuna", "alembic", "plotly", "matplotlib.figure", "matplotlib.backends.backend_agg",
    "mpl_toolkits.mplot3d", "onnx",
]  # fmt: skip

AT_START = ("PYTHON", "LC_", "LANG", "LD_", "OMP", "MKL", "OPENBLAS", "TORCH", "MALLOC")
"""Variables that Python or a library reads when it starts, so that a forked process would not notice them."""


class CommandServer:
    """The process that forks the others; it starts with the first call, and ends with this one."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._fixed = fixed(environment)
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        atexit.register(self._close)

    def _close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def suits(self, environment: dict[str, str]) -> bool:
        """Return whether a forked process may have this environment."""
        return fixed(environment) == self._fixed

    def run(
        self, arguments: list[str], cwd: Path, env: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run one command line; the same as `subprocess.run` with captured text."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            request = {"arguments": arguments, "cwd": str(cwd), "env": env, "streams": folder}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            if not select.select([self._process.stdout], [], [], timeout)[0]:
                self._close()
                raise subprocess.TimeoutExpired(["adctl", *arguments], timeout)
            code = json.loads(self._process.stdout.readline())
            out, err = (
                io.TextIOWrapper(io.BytesIO(Path(folder, name).read_bytes()), "utf-8").read() for name in ("out", "err")
            )
        return subprocess.CompletedProcess(["adctl", *arguments], code, out, err)


def fixed(environment: dict[str, str]) -> dict[str, str]:
    """The part of an environment that a forked process cannot change."""
    return {name: value for name, value in environment.items() if name.startswith(AT_START)}


def serve() -> None:
    """Read requests from standard input, run each in a forked process, and answer with its exit code."""
    for library in LIBRARIES:
        importlib.import_module(library)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            become(json.loads(line))
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])}\n")
        answers.flush()


def become(request: dict[str, Any]) -> None:
    """Be the process of one call, to the end."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, f"{request['streams']}/out", os.O_WRONLY | os.O_CREAT),
        (2, f"{request['streams']}/err", os.O_WRONLY | os.O_CREAT),
    ):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(  # noqa: SIM115
        2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1
    )
    sys.argv, sys.path[0] = ["adctl", *request["arguments"]], request["cwd"]
    code = 0
    try:
        runpy.run_module("adctl", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
