"""A real PostgreSQL server on a socket of its own, for tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Self

import pytest

PROGRAMS = [Path(folder) for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]


class PostgresServer:
    """Server that runs inside a `with` block; the test is skipped where PostgreSQL is not installed."""

    def __enter__(self) -> Self:
        if not PROGRAMS:
            pytest.skip("PostgreSQL is not installed")
        self._data = Path(tempfile.mkdtemp(prefix="adctl-postgresql-"))  # pytest's own folder is closed to other users
        self._user: list[object] = []
        if os.getuid() == 0:  # the server refuses to run as root
            shutil.chown(self._data, "postgres")
            self._user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
        self._run("initdb", "-A", "trust", "-U", "adctl", "-E", "UTF8", "--no-sync")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._data)

    @property
    def address(self) -> str:
        """Address for `ADCTL_DATABASE_URL`."""
        return f"postgresql://adctl@/postgres?host={self._data}"

    def start(self) -> None:
        """Start the server."""
        options = f"-c listen_addresses= -c unix_socket_directories={self._data} -c fsync=off"
        self._run("pg_ctl", "-w", "-l", self._data / "log", "-o", options, "start")

    def stop(self) -> None:
        """End the server at once, as a power cut would."""
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: object) -> None:
        words = [*self._user, PROGRAMS[0] / program, "-D", self._data / "db", *arguments]
        subprocess.run(list(map(str, words)), check=True, capture_output=True, cwd="/")
