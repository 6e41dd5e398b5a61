"""Every command line and every piece of Python in the README, run as it stands there, in order."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, CommandLine

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def lines() -> list[list[str]]:
    return [
        shlex.split(line, comments=True)[1:]
        for block in blocks("bash")
        for line in block.splitlines()
        if line.startswith("adctl ")
    ]


def test_every_command_line_is_run_or_is_one_of_the_two_big_ones():
    everything = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    others = [line for line in everything if not line.startswith("adctl ")]
    assert len(others) == 2
    assert others[0].endswith("adctl demo")
    assert others[1].endswith("nox")
    commands = {line[0] for line in lines()}
    assert commands == {"fetch", "train", "calibrate", "score", "report", "export", "bench"}


def test_the_readme_from_top_to_bottom(tmp_path):
    world = CommandLine(tmp_path)
    (tmp_path / "adctl.toml").write_text(blocks("toml")[0], encoding="utf-8")
    for arguments in lines():
        if "--fail-on-anomaly" in arguments:
            assert world(*arguments, code=None).returncode in (0, 3)
            continue
        world(*arguments)
        if arguments == ["fetch", "demo"]:
            make_parts(tmp_path)
    assert (tmp_path / "runs" / "last.json").is_file()
    assert (tmp_path / "heatmaps" / "report.html").is_file()
    world("train", "--print-config", "--config", "adctl.toml")
    program = "\n".join(blocks("python"))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "ADCTL_DATA_DIR": str(tmp_path / "data")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "image AUROC" in done.stdout


def make_parts(folder: Path) -> None:
    """A user's own images: good ones to learn from and new ones."""
    zipper = folder / "data" / "demo" / "zipper"
    for part, source in (("good", "train/good"), ("new", "test/good")):
        (folder / "parts" / part).mkdir(parents=True)
        for number, image in enumerate(sorted((zipper / source).iterdir())[:12]):
            shutil.copy(image, folder / "parts" / part / f"{number}.png")


@pytest.mark.slow
def test_the_setup_command_on_a_clean_copy(tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
    command = README.split("<!-- setup command -->\n```bash\n")[1].split("\n```")[0]
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        ["sh", "-c", command], cwd=copy, env={**env, "ADCTL_DATA_DIR": str(tmp_path / "data")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "report.html" in done.stdout
