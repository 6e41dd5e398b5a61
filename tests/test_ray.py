"""Scoring on a Ray cluster of three nodes: equal rows, lost nodes, poisoned images, object stores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest

import adctl
from adctl.errors import OutputError, UsageError
from adctl.progress import SILENT, Reporter
from adctl.scoring import parquet, ray_score
from adctl.scoring.score_set import ScoreSet

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def cluster():
    """Three nodes with one processor each in this machine; this process is connected."""
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"})
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    from ray.cluster_utils import Cluster

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        found.spare = found.add_node(num_cpus=1)
        found.add_node(num_cpus=1)
        ray.init(address=found.address, log_to_driver=False)
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture(scope="module")
def alone(patchcore, zippers, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "out"
    return adctl.score(str(zippers), model=patchcore.model, out=out, device="cpu", heatmaps=False, maps=False)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(ray_score, "PART", 8)


class Watcher(Reporter):
    """Calls a function when the first part is written."""

    def __init__(self, act):
        self.act = act

    @contextmanager
    def stage(self, title, total=None, *, in_bytes=False):
        def update(*_):
            act, self.act = self.act, lambda: None
            if title == "scoring":
                act()

        yield update


def scored(patchcore, images, out, reporter=SILENT, **values):
    from adctl.config import ScoreSettings, load
    from adctl.scoring.ray_score import score

    given = {"images": (str(images),), "model": patchcore.model, "out": out, "device": "cpu", "ray": "auto", **values}
    return score(load(ScoreSettings, given), reporter)


def equal(rows, others):
    assert [row.key for row in rows] == [row.key for row in others]
    assert [row.verdict for row in rows] == [row.verdict for row in others]
    assert [row.score for row in rows] == pytest.approx([row.score for row in others], rel=1e-5)


def test_rows_equal_those_of_one_machine_though_a_node_is_lost(
    cluster, patchcore, zippers, alone, small_parts, tmp_path
):
    out = tmp_path / "out"
    result = scored(patchcore, zippers, out, Watcher(lambda: cluster.remove_node(cluster.spare, allow_graceful=False)))
    equal(result.rows, alone.rows)
    assert result.counts == alone.counts
    stored = json.loads((out / "scores.json").read_text())
    assert sum(part["rows"] for part in stored["parts"]) == len(alone) == stored["rows"]
    assert stored["complete"]
    assert stored["set_aside"] == []
    page = adctl.report(scores=out, runs=tmp_path, out=tmp_path / "page.html")
    assert page.page.is_file()
    # The same command again scores nothing.
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert len(scored(patchcore, zippers, out)) == len(alone)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")} == before
    with pytest.raises(UsageError, match="holds other scores already"):
        scored(patchcore, zippers / "test" / "good", out)


def test_an_image_that_ends_its_process_is_set_aside(cluster, patchcore, zippers, alone, monkeypatch, tmp_path):
    class Poisoned:
        def __init__(self, *given):
            from adctl.scoring.ray_score import Scorer

            self.scorer = Scorer(*given)

        def score(self, samples, name):
            import os

            if any("broken_teeth" in sample.key for sample in samples):
                os._exit(1)
            return self.scorer.score(samples, name)

    monkeypatch.setattr(ray_score, "Scorer", Poisoned)
    monkeypatch.setattr(ray_score, "TRIES", 1)
    result = scored(patchcore, zippers / "test", tmp_path / "out")
    poisoned = [row for row in result.rows if "broken_teeth" in row.key]
    assert len(poisoned) == 1
    assert "was set aside" in poisoned[0].error
    assert ScoreSet.load(tmp_path / "out").manifest["set_aside"] == [poisoned[0].path]
    others = [row for row in result.rows if row not in poisoned]
    expected = [row for row in alone.rows if "broken_teeth" not in row.key]
    assert [row.score for row in others] == pytest.approx([row.score for row in expected], rel=1e-5)


def test_a_store_that_denies_or_throttles(monkeypatch):
    class Store:
        def __init__(self, errors):
            self.errors, self.files = errors, {}

        def pipe_file(self, name, data):
            if self.errors:
                raise self.errors.pop()
            self.files[name] = data

    monkeypatch.setattr(parquet, "_FIRST_WAIT", 0.0)
    slow, full, denied = [OSError("SlowDown")] * 2, [OSError("full")] * 9, [PermissionError()]
    for errors, written in ((slow, True), (full, False), (denied, False)):
        store = Store(list(errors))
        monkeypatch.setattr(parquet.Place, "_open", lambda _, store=store: (store, "bucket"))
        place = parquet.Place(Path("s3://bucket"))
        if written:
            place.write("a", b"1")
            assert store.files == {"bucket/a": b"1"}
        else:
            with pytest.raises(OutputError, match=r"s3://bucket/a cannot be written"):
                place.write("a", b"1")


def test_settings_that_do_not_fit_and_ray_is_not_imported(patchcore, zippers, tmp_path):
    with pytest.raises(UsageError, match="--ray needs a place"):
        scored(patchcore, zippers, None)
    with pytest.raises(UsageError, match="--ray writes no heatmaps"):
        scored(patchcore, zippers, tmp_path / "out", heatmaps=True)
    code = "import adctl.scoring.ray_score, sys; raise SystemExit('ray' in sys.modules or 'pyarrow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_node_with_another_version_is_refused(patchcore):
    with pytest.raises(UsageError, match="A node of the Ray cluster has adctl"):
        ray_score.Scorer({}, "model.safetensors", None, "0.0.0")
