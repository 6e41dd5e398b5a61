"""Loggers of a training: MLflow on a real server, Weights & Biases offline, and loggers that fail or hang."""

from __future__ import annotations

import importlib.util
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import ClassVar

import pytest
from conftest import settings

from adctl.config import TrainSettings, validated
from adctl.engine.history import Epoch
from adctl.errors import MissingExtraError, UsageError
from adctl.tracking.loggers import process, run_loggers, worker
from adctl.tracking.loggers.base import LoggedRun, without_secrets
from adctl.tracking.loggers.run_loggers import Loggers, finished
from adctl.training.grid import train_grid

HISTORY = [Epoch(number, 1 / number, {"mse": 1 / number}, 0.5, 1e-3, 1.0) for number in (1, 2, 3)]
ODD = "http://user:hidden-password@127.0.0.1"


@pytest.fixture(scope="module", autouse=True)
def mlflow_address(tmp_path_factory):
    """Address of a real MLflow server on loopback; it starts while the first tests run."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
               "--artifacts-destination", str(folder / "artifacts")]  # fmt: skip
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **quiet}, stdout=log, stderr=log, cwd=folder, start_new_session=True
        )
    yield f"http://127.0.0.1:{port}"
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def wait_for(address: str) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"{address}/health") as answer:
                assert answer.status == 200
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the MLflow server has not started")


@pytest.fixture
def hanging():
    """Address of a server that takes requests and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


class Recorder:
    """A logger that keeps its calls; one method may fail."""

    fails: tuple[str, ...] = ()
    calls: ClassVar[list[tuple[str, tuple]]] = []

    def __init__(self, name: str = "") -> None:
        pass

    def __getattr__(self, method):
        if method.startswith("__"):
            raise AttributeError(method)

        def call(*arguments, **named):
            self.calls.append((method, (*arguments, *named.values())))
            if method in self.fails:
                raise OSError(28, f"No space left on device {ODD}")

        return call


@pytest.fixture
def recorder(monkeypatch):
    """The process of MLflow, replaced by a recorder."""
    monkeypatch.setattr(run_loggers, "ProcessLogger", Recorder)
    monkeypatch.setattr(Recorder, "calls", [])
    return Recorder


def log_all(loggers: Loggers, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weights")
    loggers.start(folder, {"arch": "cnn"})
    for count in range(1, len(HISTORY) + 1):
        loggers.log_epoch(HISTORY[:count], None)
    loggers.log_result(folder, folder / "model.safetensors", HISTORY, {"seconds": 3.0})


# ---- which loggers


@pytest.mark.parametrize(
    ("given", "with_epochs", "without"),
    [
        ({}, "tensorboard", ""),
        ({"tensorboard": True}, "tensorboard", ""),
        ({"tensorboard": False}, "", ""),
        ({"log": "mlflow,wandb"}, "mlflow wandb", "mlflow wandb"),
        ({"log": "tensorboard,mlflow"}, "tensorboard mlflow", "tensorboard mlflow"),
        ({"log": "mlflow,mlflow", "tensorboard": True}, "tensorboard mlflow", "mlflow"),
        ({"log": "tensorboard,mlflow", "tensorboard": False}, "mlflow", "mlflow"),
    ],
)
def test_the_loggers_of_the_settings(given, with_epochs, without):
    chosen = validated(TrainSettings, given)
    assert " ".join(chosen.loggers(epochs=True)) == with_epochs
    assert " ".join(chosen.loggers(epochs=False)) == without


def test_an_unknown_logger_and_a_missing_package_are_told_before_a_training(monkeypatch, zippers, tmp_path):
    with pytest.raises(UsageError, match="mlflow"):
        validated(TrainSettings, {"log": "mlfow"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for arch in ("padim", "padim,cnn"):
        with pytest.raises(MissingExtraError) as caught:
            train_grid(settings(data=zippers, runs=tmp_path / "runs", arch=arch, log="wandb"))
        assert "adctl[wandb]" in caught.value.remedy
    assert not (tmp_path / "runs").exists()


# ---- loggers that fail


@pytest.mark.parametrize("method", ["start", "log_metrics", "log_model", "finish"])
def test_a_logger_that_fails_warns_once_and_is_left_out(recorder, monkeypatch, caplog, tmp_path, method):
    monkeypatch.setattr(recorder, "fails", (method,))
    failed: set[str] = set()
    with finished(Loggers(["mlflow"], "grid", failed)) as loggers:
        log_all(loggers, tmp_path)
    assert [one.levelname for one in caplog.records] == ["WARNING"]
    assert "The logger mlflow failed" in caplog.text
    assert "hidden-password" not in caplog.text
    assert recorder.calls[-1][0] == method
    assert failed == {"mlflow"}
    seen = len(recorder.calls)
    with finished(Loggers(["mlflow"], "grid", failed)) as loggers:
        log_all(loggers, tmp_path)
    assert len(recorder.calls) == seen
    assert len(caplog.records) == 1


def test_servers_that_hang_do_not_delay_a_training(hanging, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", hanging.replace("://", "://user:hidden-password@"))
    monkeypatch.setenv("WANDB_BASE_URL", hanging)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setattr(process, "_FINISH_SECONDS", 2.0)
    start = time.monotonic()
    with finished(Loggers(["mlflow", "wandb"])) as loggers:
        log_all(loggers, tmp_path)
        assert time.monotonic() - start < 1
    assert time.monotonic() - start < 6
    assert caplog.text.count("has not finished within 2 seconds") == 2
    assert "hidden-password" not in caplog.text
    assert "0123456789" not in caplog.text


def test_a_logger_that_refuses_says_why(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no stored key
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with finished(Loggers(["wandb"])) as loggers:
        log_all(loggers, tmp_path)
    assert "The logger wandb failed" in caplog.text
    assert "key" in caplog.text.lower()


# ---- what is sent


def test_epochs_before_a_resume_are_sent_and_those_of_other_processes(recorder, tmp_path):
    loggers = Loggers(["mlflow", "tensorboard"])
    loggers.start(tmp_path, {})
    elsewhere = pickle.loads(pickle.dumps(loggers))
    elsewhere.log_epoch(HISTORY[:1], None)
    assert (tmp_path / "tensorboard").is_dir()
    assert [method for method, _ in recorder.calls] == ["start"]
    loggers.log_epoch(HISTORY[:2], None)
    loggers.log_result(tmp_path, tmp_path / "model.safetensors", HISTORY, {})
    assert [one[1] for method, one in recorder.calls if method == "log_metrics"] == [1, 2, 3]


def test_calls_arrive_as_they_were_sent_and_a_killed_training_has_failed(recorder):
    run = LoggedRun("a", "/runs/a", "grid", {"layers": [1, 2]})
    calls = [("start", {"run": run}), ("log_metrics", {"values": {"loss": 0.5}, "epoch": 1}),
             ("log_picture", {"name": "loss", "png": b"\x89PNG", "epoch": None}),
             ("log_model", {"model": Path("/runs/a/m")})]  # fmt: skip
    worker.serve(Recorder(), [worker.encode(method, **arguments) for method, arguments in calls])
    assert recorder.calls == [*((method, tuple(one.values())) for method, one in calls), ("finish", (False,))]


def test_secrets_are_not_shown(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abcdefgh")
    assert without_secrets({"a": [ODD], "b": "x abcdefgh", "c": 1}) == {
        "a": ["http://***@127.0.0.1"],
        "b": "x ***",
        "c": 1,
    }


def test_a_grid_on_a_real_server_and_offline(zippers, tmp_path, monkeypatch, mlflow_address):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
    monkeypatch.setenv("WANDB_MODE", "offline")
    wait_for(mlflow_address)
    result = train_grid(settings(data=zippers, runs=tmp_path, name="grid", arch="padim,cnn", log="mlflow,wandb"))
    assert result.failed == 0
    client = mlflow.MlflowClient(mlflow_address)
    runs = client.search_runs([client.get_experiment_by_name("adctl").experiment_id])
    found = {run.info.run_name: run for run in runs}
    assert found.keys() == {"padim-seed0", "cnn-seed0"}
    for row in result.rows:
        run = found[row.run]
        assert run.info.status == "FINISHED"
        assert run.data.tags["group"] == "grid"
        assert run.data.params["arch"] == row.arch
        assert run.data.params["image_size"] == "64"
        assert run.data.metrics["image_auroc"] == pytest.approx(row.metrics["image_auroc"])
        assert run.data.metrics["threshold"] == pytest.approx(row.threshold)
        model = Path(client.download_artifacts(run.info.run_id, "model/model.safetensors", str(tmp_path)))
        assert model.read_bytes() == (tmp_path / "grid" / row.run / "model.safetensors").read_bytes()
        (offline,) = (tmp_path / "grid" / row.run / "wandb").glob("offline-run-*/run-*.wandb")
        written = offline.read_bytes()
        assert all(
            word.encode() in written for word in ("image_auroc", "threshold", row.run, "grid", "model.safetensors")
        )
        assert (b"loss/training" in written) == (row.arch == "cnn")
    cnn = found["cnn-seed0"].info.run_id
    assert [one.step for one in client.get_metric_history(cnn, "loss/training")] == [1, 2]
    pictures = [one.path for folder in ("", "validation") for one in client.list_artifacts(cnn, folder)]
    assert {"loss.png", "validation/epoch-00001.png", "validation/epoch-00002.png"} <= set(pictures)
    assert not (tmp_path / "grid" / "padim-seed0" / "tensorboard").exists()
    shutil.rmtree(tmp_path / "grid")
