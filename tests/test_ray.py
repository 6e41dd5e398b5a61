"""Scoring on a Ray cluster of three nodes: equal rows, lost nodes, poisoned images, object stores."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import settings
from threadpoolctl import threadpool_limits

import adctl
from adctl import ray_cluster
from adctl.errors import DataError, MissingExtraError, OutputError, TrainingError, UsageError
from adctl.progress import SILENT, Reporter
from adctl.ray_cluster import Caller, Worker, require_shared
from adctl.records import Sample, ScoredImage, Verdict
from adctl.scoring import parquet, ray_score
from adctl.scoring.parquet import Place, from_parquet, to_parquet
from adctl.scoring.score_set import ScoreSet
from adctl.training import ray_training
from adctl.training.train import train
from adctl.tuning import ray_tuning, search, study

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


def test_parts_hold_any_name_and_damaged_ones_are_told():
    pytest.importorskip("pyarrow", reason="needs the extra ray")
    row = ScoredImage("M\udcfcller.png", "M\\xfcller.png", None, None, 1.0, 2.0, Verdict.GOOD, width=3, height=3)
    data = to_parquet([row])
    assert from_parquet(data, "x") == [row]
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), 2):
            damaged[place] = random.integers(256)
        with suppress(DataError):
            from_parquet(bytes(damaged), "x")


def test_parts_of_the_user_stay_and_damaged_or_stale_ones_do_not(tmp_path, caplog):
    pytest.importorskip("pyarrow", reason="needs the extra ray")

    def row(key):
        return ScoredImage(key, key, None, None, 1.0, 2.0, Verdict.GOOD, width=3, height=3)

    names = enumerate("ab")
    parts = [ray_score._Part(f"part-{first:09d}.parquet", [Sample(Path(key), key, None)]) for first, key in names]
    place = Place(tmp_path)
    place.write(parts[0].name, b"mine")
    with pytest.raises(UsageError, match="adctl did not write it"):
        ray_score._complete_parts(place, "one", parts, overwrite=False)
    assert place.read(parts[0].name) == b"mine"
    listed = [{"file": part.name, "rows": 1} for part in parts] + [{"file": "../mine.txt"}, 7]
    place.write("scores.json", json.dumps({"job": "one", "parts": listed}).encode())
    place.write(parts[1].name, to_parquet([row("b")]))
    assert ray_score._complete_parts(place, "one", parts, overwrite=False) == {parts[1].name: [row("b")]}
    assert "It is scored again" in caplog.text
    assert ray_score._complete_parts(place, "other", parts[:1], overwrite=True) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_settings_that_do_not_fit_and_ray_is_not_imported(patchcore, zippers, tmp_path):
    with pytest.raises(UsageError, match="--ray needs a place"):
        scored(patchcore, zippers, None)
    with pytest.raises(UsageError, match="--ray writes no heatmaps"):
        scored(patchcore, zippers, tmp_path / "out", heatmaps=True)
    code = "import adctl.scoring.ray_score, sys; raise SystemExit('ray' in sys.modules or 'pyarrow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_node_with_another_version_is_refused():
    with pytest.raises(UsageError, match="A node of the Ray cluster has adctl"):
        Worker(replace(Caller.here(1), version="0.0.0"))


def categories_of(zippers, root):
    """A data set of two categories: the zippers, and the same in other colours with fewer images."""
    shutil.copytree(zippers, root / "first")
    shutil.copytree(zippers, root / "second", ignore=shutil.ignore_patterns("*1.png"))
    for path in root.glob("second/t*/*/*.png"):
        cv2.imwrite(str(path), 255 - cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    return root


@contextmanager
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def test_a_grid_has_the_digests_of_the_same_grid_without_a_cluster(cluster, zippers, tmp_path):
    given = {"data": categories_of(zippers, tmp_path / "data"), "category": "all", "arch": "padim,patchcore"}
    other = train(settings(**given, seed="0", runs=tmp_path, name="cluster", ray="auto"))
    with one_thread():  # as in the processes of the cluster; the number decides how sums are rounded
        one = train(settings(**given, seed="0", runs=tmp_path, name="alone"))
    assert [row.combination for row in one.rows] == [row.combination for row in other.rows]
    assert [row.error for row in other.rows] == [None] * 4
    assert [row.sha256 for row in one.rows] == [row.sha256 for row in other.rows]
    for row, same in zip(one.rows, other.rows, strict=True):
        assert row.metrics == pytest.approx(same.metrics, abs=1e-3)


class LocalRay:
    """One node whose workers run in this process; the worker of a task that raises `EndedError` ends."""

    class EndedError(Exception):
        """End of a process."""

    class exceptions:  # noqa: N801 - as in Ray
        class RayTaskError(Exception):
            """Error of a task."""

        class RayError(Exception):
            """Error of a process."""

    class util:  # noqa: N801
        class scheduling_strategies:  # noqa: N801
            @staticmethod
            def NodeAffinitySchedulingStrategy(*_, **__):  # noqa: N802
                return None

    put = staticmethod(lambda value: value)

    def __init__(self):
        self.started = 0

    def nodes(self):
        return [{"NodeID": "one", "Alive": True, "Resources": {"CPU": 2.0}}]

    def remote(self, cls):
        def start(*arguments):
            self.started += 1
            return Handle(cls(*arguments))

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=start))

    def wait(self, references, **_):
        return references, []

    def get(self, reference):
        try:
            return reference()
        except self.EndedError as error:
            raise self.exceptions.RayError from error


class Handle:
    def __init__(self, worker):
        self.worker = worker

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *given, **named: lambda: getattr(self.worker, name)(*given, **named))


@pytest.fixture
def local(monkeypatch):
    ray = LocalRay()
    for module in (ray_score, ray_training, ray_tuning):
        monkeypatch.setattr(module, "cluster", lambda _: nullcontext(ray))
    monkeypatch.setattr("os.chdir", lambda _: None)
    return ray


def test_folds_are_those_of_one_machine_though_a_process_ends(local, zippers, tmp_path, monkeypatch):
    given = {"arch": "padim", "good": zippers / "train/good", "folds": 2, "runs": tmp_path}
    plain = train(settings(**given, name="alone"))
    ends = [1]

    class Fragile(ray_training.Trainer):
        def fold(self, number, *, labelled):
            if ends and ends.pop():
                raise LocalRay.EndedError
            return super().fold(number, labelled=labelled)

    monkeypatch.setattr(ray_training, "Trainer", Fragile)
    made = train(settings(**given, name="cluster", ray="auto"))
    assert local.started == 2
    assert [one.number for one in made.folds] == [1, 2]
    assert [one.threshold for one in made.folds] == [one.threshold for one in plain.folds]
    assert made.trained.sha256 == plain.trained.sha256
    ends += [1] * ray_training.TRIES
    with pytest.raises(TrainingError, match="fold 1 ended 3 times"):
        train(settings(**given, name="ending", ray="auto"))


def test_a_trial_whose_process_ends_has_failed_and_the_study_goes_on(local, zippers, tmp_path, monkeypatch):
    evaluate = search.evaluate
    ends = [1]

    def fragile(*given):
        if ends and ends.pop():
            raise SystemExit  # ends the trial without a result, as the end of its process does
        return evaluate(*given)

    class Fragile(ray_tuning.TrialWorker):
        def run(self, task):
            try:
                super().run(task)
            except SystemExit as error:
                raise LocalRay.EndedError from error

    monkeypatch.setattr(search, "evaluate", fragile)
    monkeypatch.setattr(ray_tuning, "TrialWorker", Fragile)
    same = study.Candidate(None, {}, 0.5, 0.1)
    monkeypatch.setattr(study, "_measure_again", lambda *_: ((same,), same))
    values = {"image_size": 64, "arch": "padim", "trials": 3, "splits": 1, "device": "cpu", "final_model": False}
    result = adctl.tune(data=zippers, runs=tmp_path, name="lost", ray="auto", **values)
    assert (result.trials, result.failed, local.started) == (3, 1, 2)
    with pytest.raises(UsageError, match="--jobs starts processes on this machine"):
        adctl.tune(data=zippers, runs=tmp_path, ray="auto", jobs=2, **values)


def test_a_single_training_and_a_folder_that_a_node_does_not_see(local, zippers, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="this is a single training"):
        train(settings(arch="padim", data=zippers, runs=tmp_path, ray="auto"))
    monkeypatch.setattr(ray_training, "require_shared", lambda folder: require_shared(folder / "elsewhere"))
    with pytest.raises(UsageError, match="does not see the folder"):
        train(settings(arch="padim,cnn", data=zippers, runs=tmp_path, ray="auto"))


class FaultyStore:
    """Application before an S3 server: denies, throttles, or is full; counts what was written."""

    def __init__(self, app):
        self.app, self.answers, self.room, self.written = app, [], float("inf"), Counter()

    def __call__(self, environ, start):
        size, name = int(environ.get("CONTENT_LENGTH") or 0), environ["PATH_INFO"].rpartition("/")[2]
        if environ["REQUEST_METHOD"] == "PUT" and size:
            answer = self.answers.pop() if self.answers else None
            if answer is None and self.room <= 0:
                answer = "507 Insufficient Storage", "XMinioStorageFull"
            if answer is not None:
                environ["wsgi.input"].read(size)
                start(answer[0], [("Content-Type", "application/xml")])
                return [f"<Error><Code>{answer[1]}</Code><Message>{answer[1]}</Message></Error>".encode()]
            self.room -= name.startswith("part-")
            self.written[name] += 1
        return self.app(environ, start)


@pytest.fixture
def store(monkeypatch, tmp_path):
    """A bucket `scores` of an S3 server on loopback that can be made faulty."""
    s3fs = pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1", "MAX_ATTEMPTS": "1"}
    for name, value in {**names, "ENDPOINT_URL": f"http://{host}:{port}"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("ADCTL_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(parquet, "_FIRST_WAIT", 0.01)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("scores")
    server._server.app = found = FaultyStore(server._server.app)
    yield found
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_a_bucket_that_throttles_denies_and_fills(local, store, patchcore, zippers, alone, small_parts):
    out = Path("s3://scores/line3")
    store.answers = [("403 Forbidden", "AccessDenied")] * 50
    with pytest.raises(OutputError, match=r"s3://scores/line3/scores.json cannot be written or read: .*(?i:denied)"):
        scored(patchcore, zippers, out)
    store.answers = [("503 Slow Down", "SlowDown")] * 8
    store.room = 1  # part
    with pytest.raises(OutputError, match=r"s3://scores/line3/part-.* cannot be written or read: .*StorageFull"):
        scored(patchcore, zippers, out)
    store.room = float("inf")
    equal(scored(patchcore, zippers, out).rows, alone.rows)  # continues behind the parts that were written
    parts = {name: count for name, count in store.written.items() if name.startswith("part-")}
    assert set(parts.values()) == {1}
    stored = ScoreSet.load(out)
    equal(stored.rows, alone.rows)
    assert stored.manifest["complete"]


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (ConnectionError("refused"), UsageError, "No Ray cluster answers at head:6379"),
        (RuntimeError("Version mismatch: Ray 2.50"), UsageError, "Version mismatch: Ray 2.50"),
        (ImportError("no ray"), MissingExtraError, "ray"),
    ],
)
def test_a_cluster_that_cannot_be_used(monkeypatch, fault, kind, message):
    def fail(*_, **__):
        raise fault

    found = SimpleNamespace(is_initialized=lambda: False, init=fail, __version__="2.60")
    load = fail if isinstance(fault, ImportError) else lambda _: found
    monkeypatch.setattr(ray_cluster, "importlib", SimpleNamespace(import_module=load))
    with pytest.raises(kind, match=message), ray_cluster.cluster("head:6379"):
        pass


def test_a_cluster_that_loses_all_nodes_and_a_worker_that_cannot_start(local, monkeypatch):
    monkeypatch.setattr(ray_cluster, "_PATIENCE", 0.0)
    monkeypatch.setattr(ray_cluster, "_POLL", 0.0)
    pool = ray_cluster.Pool(local, Worker, (), cpus=None, gpu=0)

    class DiedError(local.exceptions.RayError):
        """Death of an actor in its creation task."""

    def fail():
        raise DiedError("The actor died because of an error raised in its creation task\nModuleNotFoundError: adctl")

    with pytest.raises(DataError, match="cannot start: ModuleNotFoundError: adctl"):
        list(pool.run(["task"], lambda *_: fail))
    monkeypatch.setattr(local, "nodes", list)
    with pytest.raises(UsageError, match="has lost all of its nodes"):
        list(ray_cluster.Pool(local, Worker, (), cpus=None, gpu=0).run(["task"], lambda *_: fail))
