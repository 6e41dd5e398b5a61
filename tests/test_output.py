"""Standard output: any encoding, a full disk, a closed stream, hostile names; signals and limits of memory."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from adctl import files
from adctl.names import csv_cell, printable

ADCTL = [sys.executable, "-m", "adctl"]
ESCAPES = "\x1b[31m=1+1\r\n\t\x07\udcfc\u202e"


def run(*words: object, shell: str = "", **options) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = ["sh", "-c", f'"$@" {shell}', "sh"] if shell else []
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([*command, *ADCTL, *map(str, words)], env=environment, timeout=120, check=False, **streams)


# ---- encodings


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-16", "utf-8"])
def test_json_is_utf_8_whatever_the_locale_is(encoding, tmp_path):
    done = run(
        "score", "Prüfung ✓.png", "--model", "Prüfung ✓", "--json", cwd=tmp_path,
        env={"PYTHONUTF8": "0", "PYTHONIOENCODING": encoding, "PYTHONCOERCECLOCALE": "0"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "Prüfung ✓" in json.loads(done.stdout.decode("utf-8"))["error"]["message"]
    assert b"Internal error" not in done.stderr


def test_text_that_the_encoding_lacks_is_escaped(tmp_path):
    done = run("train", "--print-config", "--name", "✓", cwd=tmp_path, env={"PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 0
    assert b"\\u2713" in done.stdout


def test_what_libraries_print_never_stands_in_the_output():
    program = (
        "import os; from adctl.cli import streams; streams.claim_stdout(); "
        "streams.prepare(); os.write(1, b'connected\\n'); os.system('echo child'); streams.write_stdout('{}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=True
    )
    assert done.stdout == b"{}"
    assert done.stderr.split() == [b"connected", b"child"]


# ---- a stream that fails


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [("--help",), ("fetch", "--list"), ("fetch", "--list", "--json"), ("--version",)])
def test_a_full_output_is_one_message(words, tmp_path):
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = run(*words, stdout=full, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == b"error: Cannot write to the standard output: No space left on device.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(("words", "code"), [(("report", "x"), 2), (("report", "x", "--json"), 2), (("fetch",), 0)])
def test_a_full_standard_error_changes_no_exit_code(words, code, tmp_path):
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = run(*words, stderr=full, cwd=tmp_path)
    assert done.returncode == code
    assert bool(done.stdout) == ("--json" in words or code == 0)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell of another kind")
@pytest.mark.parametrize("words", [("fetch", "--list"), ("fetch", "--list", "--json")])
def test_a_closed_output_is_one_message(words, tmp_path):
    done = run(*words, shell=">&-", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == b"error: Cannot write to the standard output: Bad file descriptor.\n"
    assert run(*words, shell=">&- 2>&-", cwd=tmp_path).returncode == 1


@pytest.mark.skipif(sys.platform == "win32", reason="pipes differ there")
def test_a_reader_that_leaves_is_one_message(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    done = run("fetch", "--list", "--json", stdout=writing, cwd=tmp_path)
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr == b"error: Cannot write to the standard output: Broken pipe.\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory differ there")
def test_a_limit_of_memory_is_no_internal_error(tmp_path, zippers):
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (500 << 20, 500 << 20))

    done = run("train", "--data", zippers, cwd=tmp_path, preexec_fn=limit)
    assert done.returncode == 1
    assert b"not enough memory" in done.stderr
    assert b"Internal error" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a folder in use is not removed there")
@pytest.mark.parametrize("words", [("score", "a.png"), ("train", "--good", "."), ("report",)])
def test_a_deleted_current_folder_is_one_message(words, tmp_path):
    program = [*ADCTL, *words]
    done = subprocess.run(
        ["sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh", *program], cwd=tmp_path, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: The current folder no longer exists.\n")


@pytest.mark.skipif(sys.platform == "win32", reason="names of other limits")
@pytest.mark.parametrize(
    "changes",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "20"},
        {"COLUMNS": "1"},
        {"COLUMNS": "none"},
        {"HOME": "/proc", "XDG_CACHE_HOME": "/proc"},
    ],
)
def test_odd_environments_change_nothing(changes, patchcore, zippers, tmp_path):
    image = tmp_path / "Prüf ✓.png"
    shutil.copy(next((zippers / "test").rglob("*.png")), image)
    done = run("score", image.name, "--model", patchcore.model, "--out", "o", shell="<&-", cwd=tmp_path, env=changes)
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
    assert (tmp_path / "o" / image.name).exists()


@pytest.mark.skipif(sys.platform == "win32", reason="limits of open files differ there")
def test_few_open_files_are_enough(patchcore, zippers, tmp_path):
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    done = run("score", zippers / "test", "--model", patchcore.model, "--out", "o", cwd=tmp_path, preexec_fn=limit)
    assert done.returncode == 0, done.stderr


# ---- signals

WORK = """
import sys, time
from adctl.cli import app, interrupts
def work(*a, **k):
    try:
        print("works", flush=True)
        time.sleep(60)
    finally:
        if "slow" in sys.argv:
            print("cleans", flush=True)
            time.sleep(60)
        print("cleaned", flush=True)
app.app = work
sys.exit(app.run([]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("twice", [False, True])
def test_a_signal_unwinds_and_a_second_ends_at_once(sent, twice):
    program = [sys.executable, "-c", WORK, *(["slow"] if twice else [])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"works\n"
        process.send_signal(sent)
        assert process.stdout.readline() == (b"cleans\n" if twice else b"cleaned\n")
        if twice:
            process.send_signal(sent)
        start = time.monotonic()
        assert process.wait(timeout=30) == 128 + sent
        assert time.monotonic() - start < 10


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no nohup")
def test_a_hang_up_that_was_ignored_stays_ignored():
    program = "import signal; from adctl.cli import interrupts; interrupts.install(); print(signal.getsignal(1).name)"
    done = subprocess.run(
        ["nohup", sys.executable, "-c", program], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout == "SIG_IGN\n"


def test_a_name_of_an_interrupted_run_can_be_continued(tmp_path):
    from adctl import run_folder
    from adctl.errors import UsageError

    run_folder.new_folder(tmp_path, name="line3")
    with pytest.raises(UsageError, match="exists already") as told:
        run_folder.new_folder(tmp_path, name="line3")
    assert "--resume line3" in told.value.remedy
    (tmp_path / "line3" / "model.safetensors").touch()
    with pytest.raises(UsageError) as told:
        run_folder.new_folder(tmp_path, name="line3")
    assert "--resume" not in told.value.remedy


# ---- names


@given(st.text())
def test_a_printable_text_holds_nothing_that_a_terminal_obeys(text):
    shown = printable(text)
    shown.encode()
    assert not any(ord(one) < 32 or 127 <= ord(one) < 160 for one in shown)
    if files.is_encodable(text) and text.isprintable():
        assert shown == text


@given(st.text())
def test_a_cell_is_no_formula_and_a_row_stays_a_row(text):
    stream = io.StringIO()
    csv.writer(stream).writerow([csv_cell(text), 1.5, None])
    (row,) = csv.reader(io.StringIO(stream.getvalue(), newline=""))
    assert row[1:] == ["1.5", ""]
    assert not row[0].startswith(("=", "+", "-", "@", "\t", "\r"))


@given(st.text() | st.just(ESCAPES))
def test_json_keeps_every_text_exactly(text):
    encoded = files.to_json({"name": text}).encode()
    assert json.loads(encoded) == {"name": text}


def test_bytes_and_controls_are_shown_as_escapes():
    assert printable(ESCAPES) == "\\x1b[31m=1+1\\x0d\\x0a\\x09\\x07\\xfc\\u202e"
    assert csv_cell("=1+1") == "'=1+1"
    assert csv_cell(-1.5) == -1.5


@pytest.mark.skipif(sys.platform == "win32", reason="names of other characters")
def test_hostile_names_reach_no_terminal(tmp_path):
    done = run("score", "a\x1b[31mb", "--model", "x\x1b[2Jy", cwd=tmp_path)
    assert done.returncode == 2
    assert b"\x1b" not in done.stderr
    assert b"x\\x1b[2Jy" in done.stderr
