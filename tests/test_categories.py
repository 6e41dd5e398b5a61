"""`adctl train --category all`: one run each and one summary, whatever becomes of one of them."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import settings

from adctl.categories import train_all
from adctl.errors import UsageError


@pytest.fixture
def two(zippers, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(zippers, tmp_path / "data" / name)
    for image in list((tmp_path / "data/second/train/good").iterdir())[3:]:
        image.unlink()
    return tmp_path / "data"


def test_one_run_each_and_one_summary(two, tmp_path):
    trained = train_all(settings(data=two, category="all", runs=tmp_path / "runs", arch="padim"))
    first, second = trained.categories
    assert first.result.model == trained.folder / "first" / "model.safetensors"
    assert second.result is None
    assert "Too few good images" in second.error
    assert trained.failed == 1
    summary = json.loads((trained.folder / "summary.json").read_text(encoding="utf-8"))
    assert [row["category"] for row in summary["categories"]] == ["first", "second"]
    assert summary["categories"][0]["sha256"] == first.result.sha256


def test_command_line(adctl, two):
    done = adctl("train", "--data", two, "--category", "all", "--image-size", "64", "--name", "both", code=1)
    assert "failed: Too few good images" in done.stdout
    assert (adctl.folder / "runs/both/first/model.safetensors").exists()
    assert adctl.json("score")["result"]["counts"]["error"] == 0


def test_refusals(zippers, tmp_path):
    with pytest.raises(UsageError, match="several categories"):
        train_all(settings(data=zippers, category="all", runs=tmp_path))
    with pytest.raises(UsageError, match="one run"):
        train_all(settings(data=zippers, category="all", runs=tmp_path, resume="x"))
