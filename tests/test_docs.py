"""Every command and program in the README and in `docs/`, run page by page as it is printed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, CommandLine

README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs" / "pages").glob("*.md"))


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def lines(page):
    return [line for block in blocks(page, "bash") for line in block.splitlines() if line.strip()]


def run_lines(world, page):
    for line in lines(page):
        if not line.startswith("adctl "):
            continue
        arguments = shlex.split(line, comments=True)[1:]
        done = world(*arguments, code=None)
        allowed = (0, 3) if "--fail-on-anomaly" in arguments else (0,)
        assert done.returncode in allowed, f"{line}\n{done.stdout}\n{done.stderr}"


def run_python(world, page):
    return subprocess.run(
        [sys.executable, "-c", "\n".join(blocks(page, "python"))],
        cwd=world.folder, env={**os.environ, "PYTHONPATH": str(ROOT), "ADCTL_DATA_DIR": str(world.folder / "data")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder in which a user followed the README."""
    made = CommandLine(tmp_path_factory.mktemp("docs"))
    made("fetch", "demo")
    make_parts(made.folder)
    run_lines(made, README)
    return made


def make_parts(folder):
    """A user's own images: good ones to learn from and new ones."""
    zipper = folder / "data" / "demo" / "zipper"
    for part, source in (("good", "train/good"), ("new", "test/good")):
        (folder / "parts" / part).mkdir(parents=True)
        for number, image in enumerate(sorted((zipper / source).iterdir())[:12]):
            shutil.copy(image, folder / "parts" / part / f"{number}.png")


def test_the_readme_has_two_more_commands_and_shows_every_command():
    others = [line for line in lines(README) if not line.startswith("adctl ")]
    assert len(others) == 2
    assert others[0].endswith("adctl demo")
    assert others[1].endswith("nox")
    shown = {line.split()[1] for line in lines(README) if line.startswith("adctl ")}
    assert shown == {"fetch", "train", "calibrate", "score", "report", "export", "bench", "runs"}


def test_the_readme_leaves_what_it_says(world):
    assert (world.folder / "runs" / "last.json").is_file()
    assert (world.folder / "heatmaps" / "report.html").is_file()
    assert (world.folder / "gate.xml").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(world, page):
    assert all(line.startswith("adctl ") for line in lines(page)), "blocks of other commands are text"
    run_lines(world, page)


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "pages" / "python.md"], ids=lambda page: page.stem)
def test_the_programs_of_a_page_run(world, page):
    done = run_python(world, page)
    assert done.returncode == 0, done.stderr
    assert "good" in done.stdout or "reject" in done.stdout


@pytest.mark.parametrize("file", sorted((ROOT / "examples" / "configs").iterdir()), ids=lambda file: file.name)
def test_the_settings_files_of_the_examples_run(world, file):
    world("train", "--config", str(file), "--dataset", "demo", "--category", "zipper", "--epochs", "1")


def test_the_settings_file_of_the_docs_is_valid(world):
    (text,) = blocks(ROOT / "docs" / "pages" / "settings.md", "toml")
    (world.folder / "adctl.toml").write_text(text, encoding="utf-8")
    world("train", "--print-config", "--config", "adctl.toml")


@pytest.mark.slow
def test_the_setup_command_on_a_clean_copy(tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
    command = README.read_text(encoding="utf-8").split("<!-- setup command -->\n```bash\n")[1].split("\n```")[0]
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        ["sh", "-c", command], cwd=copy, env={**env, "ADCTL_DATA_DIR": str(tmp_path / "data")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "report.html" in done.stdout
