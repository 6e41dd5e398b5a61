"""The index of runs: folders as truth, conditions, the best run, lineage, removal, several writers, migrations."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy
from peers import wait_until
from postgres_server import PostgresServer

from adctl import run_folder
from adctl.errors import AdctlError, DataError, OutputError, UsageError
from adctl.tracking import (
    changes,
    conditions,
    database,
    folders,
    index,
    migrate,
    models,
    notes,
    own_files,
    prune,
    queries,
    reader,
    record,
    schema,
    versions,
)
from adctl.tracking.export import export_runs
from adctl.tracking.lineage import lineage_of


def make_run(runs: Path, name: str, **changes) -> Path:
    """Write a run folder as a finished training leaves it."""
    folder = runs / name
    folder.mkdir(parents=True)
    values = {"arch": "padim", "category": "zipper", "seed": 0, "finished": "2026-11-01T10:00:00+00:00", **changes}
    manifest = {
        "schema": "adctl.run/1",
        "finished": values["finished"],
        "arch": values["arch"],
        "model": {"file": "model.safetensors", "sha256": "ab" * 32},
        "dataset": {"name": "demo", "category": values["category"], "training_digest": "cd" * 32},
        "split": {"train": 48, "validation": 0, "calibration": 12},
        "config": {"image_size": 256, "backbone": "lite0"},
        "settings": {"seed": {"value": values["seed"], "from": "flag"}, "epochs": {"value": 5, "from": "default"}},
        "device": {"name": "cpu", "reason": "test"},
        "seconds": 3.5,
        "environment": {"adctl": "0.1.0", "platform": "Linux"},
    }
    (folder / "run.json").write_text(json.dumps(manifest))
    (folder / "split.json").write_text(json.dumps({"train": ["a"], "validation": [], "calibration": ["b"]}))
    (folder / "settings.json").write_text(json.dumps({"schema": "adctl.settings/1", "settings": {}}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def add_metrics(folder: Path, **metrics: float) -> None:
    record.made(folder / "model.safetensors", "report", folder / "report.html", source=folder / "h", metrics=metrics)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Three runs with metrics, indexed."""
    monkeypatch.delenv(database.VARIABLE, raising=False)
    for name, arch, auroc, seed in (("a", "padim", 0.9, 1), ("b", "patchcore", 0.97, 2), ("c", "patchcore", 0.8, 3)):
        folder = make_run(tmp_path / "runs", name, arch=arch, seed=seed)
        record.training_finished(folder)
        add_metrics(folder, image_auroc=auroc, p95_ms=10 * seed)
    index.refresh(tmp_path / "runs")
    return tmp_path / "runs"


def names(found) -> list[str]:
    return [row.values["name"] for row in found]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("arch=patchcore", "bc"),
        ("arch=patchcore and image_auroc>0.95", "b"),
        ("seed<=2", "ab"),
        ("seed!=2", "ac"),
        ("p95_ms<15", "a"),
        ("backbone=lite0", "abc"),
        ("image_size=256 and category~ZIP", "abc"),
        ("arch~core", "bc"),
        ("epochs=7", ""),
        ("no_such_metric>1", ""),
    ],
)
def test_conditions(runs, condition, expected):
    assert "".join(sorted(names(queries.find_runs(runs, [condition])))) == expected


@pytest.mark.parametrize("condition", ["arch", "arch==", "image_auroc>", "1=2", "arch=padim and", "(arch=padim)"])
def test_a_condition_that_cannot_be_understood(runs, condition):
    with pytest.raises(UsageError, match="cannot be understood"):
        queries.find_runs(runs, [condition])


def test_sorting_puts_missing_values_last(runs):
    record.training_finished(make_run(runs, "d"))
    assert names(queries.find_runs(runs, sort="-image_auroc")) == ["b", "a", "c", "d"]
    assert names(queries.find_runs(runs, sort="p95_ms")) == ["a", "b", "c", "d"]
    assert names(queries.find_runs(runs, sort="name", limit=2)) == ["a", "b"]


def test_the_best_run(runs):
    assert queries.best_run(runs, "image_auroc").values["name"] == "b"
    assert queries.best_run(runs, "image_auroc", ["p95_ms<15"]).values["name"] == "a"
    assert queries.best_run(runs, "p95_ms").values["name"] == "a"
    with pytest.raises(UsageError, match="metric 'dice'"):
        queries.best_run(runs, "dice")


def test_the_best_run_as_a_model(runs):
    notes.tag(runs, "a", add=["line3"])
    notes.tag(runs, "c", add=["line3"])
    assert models.find_model(runs, Path("best:line3")) == runs / "a" / "model.safetensors"
    assert models.find_model(runs, Path("best:zipper")) == runs / "b" / "model.safetensors"
    with pytest.raises(UsageError, match="No run has the tag"):
        models.find_model(runs, Path("best:line9"))


def test_a_run_by_its_name_its_id_or_its_folder(runs):
    identity = queries.find_run(runs, "a").values["id"]
    assert queries.find_run(runs, identity[:20].lower()).values["name"] == "a"
    assert queries.find_run(runs, str(runs / "a")).values["id"] == identity
    with pytest.raises(UsageError, match="'aa'"):
        queries.find_run(runs, "aa")


def test_the_index_is_rebuilt_from_the_folders(runs):
    notes.tag(runs, "a", add=["line3", "old"])
    notes.tag(runs, "a", remove=["old"])
    notes.write_note(runs, "b", "new lamp")
    before = json.dumps(index.dump(runs), sort_keys=True)
    (runs / database.FILE).unlink()
    database._engine.cache_clear()
    result = index.rebuild(runs)
    assert (result.runs, result.artifacts, result.problems) == (3, 3, ())
    assert json.dumps(index.dump(runs), sort_keys=True) == before


def test_a_folder_that_was_deleted_or_damaged(runs):
    shutil.rmtree(runs / "a")
    (runs / "b" / "run.json").write_text("{")
    assert queries.find_run(runs, "a").state == "missing"
    with pytest.raises(UsageError, match="no longer exists"):
        notes.tag(runs, "a", add=["line3"])
    result = index.rebuild(runs)
    assert result.runs == 1
    assert "run.json is damaged" in result.problems[0]


def test_a_copied_run_gets_an_id_of_its_own(runs):
    record.training_started(make_run(runs, "d"))
    shutil.copytree(runs / "d", runs / "e")
    result = index.rebuild(runs)
    assert result.runs == 5
    assert "is a copy" in result.problems[0]
    found = [queries.find_run(runs, name).values["id"] for name in "de"]
    assert len(set(found)) == 2


def test_a_killed_training_is_interrupted(tmp_path):
    folder = make_run(tmp_path / "runs", "killed")
    (folder / "run.json").unlink()
    code = (
        "import sys, time; from pathlib import Path; from adctl.tracking import record\n"
        "from adctl.training.resume import run_lock; folder = Path(sys.argv[1])\n"
        "with run_lock(folder):\n"
        "    record.training_started(folder); print('started', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "started\n"
        assert queries.find_run(tmp_path / "runs", "killed").state == "running"
        process.send_signal(signal.SIGKILL)
    assert queries.find_run(tmp_path / "runs", "killed").state == "interrupted"
    assert index.rebuild(tmp_path / "runs").runs == 1
    assert queries.find_runs(tmp_path / "runs", ["state=interrupted"])


WRITER = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_tracking import add_metrics, make_run
from adctl.tracking import queries, record
for number in range(int(sys.argv[2])):
    folder = make_run(Path(sys.argv[1]), f"w{sys.argv[4]}-{number}")
    record.training_finished(folder)
    add_metrics(folder, image_auroc=number / 100)
    queries.find_runs(Path(sys.argv[1]), limit=1)  # brings the index up to date
"""


def write_at_once(runs: Path, writers: int, each: int) -> None:
    arguments = [sys.executable, "-c", WRITER, str(runs), str(each), str(Path(__file__).parent)]
    processes = [
        subprocess.Popen([*arguments, str(number)], stderr=subprocess.PIPE, text=True) for number in range(writers)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert (process.returncode, errors) == (0, "")


def check_complete(runs: Path, count: int) -> None:
    dump = index.dump(runs)
    assert sum("settings" in row for row in dump) == count
    assert sum("kind" in row for row in dump) == count


def test_several_writers_at_once(tmp_path):
    write_at_once(tmp_path / "runs", writers=3, each=10)
    check_complete(tmp_path / "runs", 30)


@pytest.mark.slow
def test_ten_writers_of_a_hundred_runs(tmp_path):
    write_at_once(tmp_path / "runs", writers=10, each=100)
    check_complete(tmp_path / "runs", 1000)


@pytest.mark.slow
def test_writers_that_are_killed_leave_a_whole_database(tmp_path):
    runs = tmp_path / "runs"
    arguments = [sys.executable, "-c", WRITER, str(runs), "1000", str(Path(__file__).parent)]
    for number in range(20):
        with subprocess.Popen([*arguments, str(number)]) as process:
            wait_until((runs / f"w{number}-1").is_dir, seconds=60)  # the first run is indexed
            time.sleep(number / 10)
            process.kill()
    with sqlite3.connect(runs / database.FILE) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    result = index.rebuild(runs)
    assert result.runs > 20
    assert len(result.problems) <= 20  # a run whose folder the test itself had not completed


def test_commands_that_record_do_not_open_the_database(tmp_path):
    folder = make_run(tmp_path / "runs", "a")
    program = (
        "import sys; from pathlib import Path; from adctl.tracking import record; folder = Path(sys.argv[1])\n"
        "record.training_started(folder); record.training_finished(folder)\n"
        "record.made(folder / 'model.safetensors', 'scores', folder / 'h')\n"
        "print([name for name in ('sqlalchemy', 'alembic', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert not (tmp_path / "runs" / database.FILE).exists()
    assert names(queries.find_runs(tmp_path / "runs")) == ["a"]


def test_a_reader_that_is_killed_loses_no_change(runs):
    record.training_finished(make_run(runs, "d"))
    with pytest.raises(KeyboardInterrupt), changes.taken(runs):
        raise KeyboardInterrupt
    record.training_finished(make_run(runs, "e"))
    assert sorted(names(queries.find_runs(runs))) == ["a", "b", "c", "d", "e"]
    assert not list((runs / changes.FOLDER).iterdir())


def test_a_damaged_run_is_told_once_and_hides_no_other(runs, caplog):
    for name in ("d", "e"):
        record.training_finished(make_run(runs, name))
    (runs / "d" / "run.json").write_text("{")
    assert sorted(names(queries.find_runs(runs))) == ["a", "b", "c", "e"]
    assert caplog.text.count("run.json is damaged") == 1


def entries_of(document, place=()):
    """The places of all values in a document."""
    for name in document if isinstance(document, dict) else ():
        yield (*place, name)
        yield from entries_of(document[name], (*place, name))


@pytest.mark.parametrize("name", ["run.json", "settings.json", "started.json", "notes.json", "lineage"])
def test_odd_values_in_a_run_hide_no_other(tmp_path, monkeypatch, name):
    monkeypatch.delenv(database.VARIABLE, raising=False)
    runs = tmp_path / "runs"
    folder, _ = make_run(runs, "odd"), make_run(runs, "good")
    record.training_started(folder)
    notes.tag(runs, "odd", add=["line3"])
    add_metrics(folder, image_auroc=0.9)
    index.rebuild(runs)
    path = next((folder / name).iterdir()) if name == "lineage" else folder / name
    if name == "settings.json":
        (folder / "run.json").unlink()
        path.write_text(json.dumps({"schema": "adctl.settings/1", "settings": {"seed": {"value": 3, "from": "flag"}}}))
    document = json.loads(path.read_text())
    if name == "run.json":
        document["parent"] = {"run": "good", "model": "good/model.safetensors", "sha256": "ab" * 32}
    whole = json.dumps(document)
    for place in entries_of(json.loads(whole)):
        for value in (None, [[1]], {"a": None}, "\ud800\0", float("nan"), 10**30):
            document = json.loads(whole)
            inside = document
            for step in place[:-1]:
                inside = inside[step]
            inside[place[-1]] = value
            path.write_text(json.dumps(document))
            index.rebuild(runs)
            record.changed(folder)
            found = {row.values["name"]: row.state for row in queries.find_runs(runs, sort="-image_auroc")}
            assert found["good"] == "finished", (place, value)
            prune.prune(runs, prune.PruneRule(1, "image_auroc"), dry_run=True)
            with suppress(DataError):
                lineage_of(folder)
            with suppress(AdctlError):
                versions.accept(runs, "odd")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names that are not UTF-8")
@pytest.mark.parametrize("place", [b"M\xfcller", b"a?b=c#d%20"])
def test_runs_in_a_folder_of_any_name(tmp_path, monkeypatch, place):
    monkeypatch.delenv(database.VARIABLE, raising=False)
    runs = tmp_path / os.fsdecode(place) / "runs"
    folder = make_run(runs, "a", category="\udcff")
    record.training_finished(folder)
    add_metrics(folder, image_auroc=0.9)
    for _ in range(2):
        (row,) = queries.find_runs(runs)
        assert (row.folder, row.state, row.get("image_auroc")) == (folder, "finished", 0.9)
        assert queries.find_run(runs, str(folder)).folder == folder
        index.rebuild(runs)
    assert index.dump(runs)[0]["category"] == "\\xff"
    assert (runs / database.FILE).is_file()


def test_a_lineage_of_things_made_from_each_other_ends(runs):
    for path, source in (("x", "model.safetensors"), ("y", "x"), ("x", "y")):
        folders.write_artifact(runs / "a", "scores", runs / "a" / path, runs / "a" / source)
        name = f"copy-{path}-{source}.json"
        newest = max((runs / "a" / "lineage").iterdir(), key=lambda one: one.stat().st_mtime_ns)
        newest.rename(newest.with_name(name))
    assert "model" in str(lineage_of(runs / "a"))


def test_an_export_of_no_run_is_replaced_by_the_next(runs):
    out = runs.parent / "runs.csv"
    assert [export_runs(runs, out, ["arch=none"]), export_runs(runs, out)] == [0, 3]
    assert out.read_text().splitlines()[1].split(",")[1] == "a"


def test_only_what_changed_is_written(runs):
    queries.find_runs(runs)
    statements = []
    engine = database._engine(str(runs.absolute()), None)
    sqlalchemy.event.listen(engine, "before_cursor_execute", lambda *values: statements.append(values[2]))
    record.made(runs / "a" / "model.safetensors", "scores", runs / "a" / "h")
    queries.find_runs(runs)
    writing = [one.split()[0] for one in statements if one.split()[0] in ("INSERT", "UPDATE", "DELETE")]
    assert writing == ["INSERT"]
    notes.tag(runs, "a", add=["line3"])
    assert queries.find_run(runs, "a").values["tags"] == ["line3"]
    assert statements[-1].startswith("SELECT")
    assert sum(one.startswith("UPDATE runs SET tags") for one in statements) == 1


def test_the_list_of_runs_needs_no_sqlalchemy(runs):
    program = (
        "import sys; from pathlib import Path; from adctl.tracking import queries\n"
        "found = queries.find_runs(Path(sys.argv[1]), ['arch=patchcore and image_auroc>0.95'], '-image_auroc')\n"
        "print([row.values['name'] for row in found], 'sqlalchemy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, runs], capture_output=True, text=True, check=True)
    assert done.stdout == "['b'] False\n"
    assert tuple(schema.RUNS.c.keys()) == conditions.COLUMNS


def test_readers_do_not_wait_for_a_writer(runs):
    queries.find_runs(runs)
    with sqlite3.connect(runs / database.FILE, isolation_level=None) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE runs SET note = 'half'")
        start = time.monotonic()
        assert {row.values["note"] for row in queries.find_runs(runs)} == {""}
        assert time.monotonic() - start < 1
        writer.execute("ROLLBACK")
    writer.close()


def test_runs_of_a_grid_stand_in_the_index_of_all_runs(runs):
    (runs / "grid").mkdir()
    (runs / "grid" / "summary.json").write_text("{}")
    record.training_finished(make_run(runs / "grid", "one"))
    record.training_finished(make_run(runs / "a", "fold-1"))
    assert queries.find_run(runs, "one").folder == runs / "grid" / "one"
    before = index.dump(runs)
    assert len(queries.find_runs(runs)) == 4
    assert index.rebuild(runs).runs == 4
    assert index.dump(runs) == before


def test_an_artifact_of_the_same_path_is_replaced(runs):
    add_metrics(runs / "a", image_auroc=0.5)
    row = queries.find_run(runs, "a")
    assert row.get("image_auroc") == 0.5
    assert len(folders.read_run(runs / "a").artifacts) == 1


def test_models_outside_their_run_leave_nothing(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    record.made(tmp_path / "model.safetensors", "scores", tmp_path / "h")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_lineage(runs):
    model = runs / "a" / "model.safetensors"
    calibrated = runs / "a" / "model-conformal.safetensors"
    calibrated.write_bytes(b"other")
    record.made(model, "calibration", calibrated)
    record.made(calibrated, "scores", runs.parent / "h")
    record.made(calibrated, "report", runs.parent / "h" / "report.html", source=runs.parent / "h")
    record.made(calibrated, "served", calibrated)
    root = lineage_of(runs / "a")
    assert root.kind == "images"
    assert f"sha256 {'cd' * 6}" in root.facts
    (split,) = root.children
    (tree,) = split.children
    assert {child.kind for child in tree.children} == {"calibration"}
    (calibration,) = tree.children
    assert [child.kind for child in calibration.children] == ["scores"]
    assert [child.kind for child in calibration.children[0].children] == ["report"]


def test_prune_keeps_what_is_needed(runs):
    for name in ("d", "e", "f", "g"):
        record.training_finished(make_run(runs, name))
        add_metrics(runs / name, image_auroc=0.1)
    record.training_finished(make_run(runs, "new", finished=run_folder.timestamp()))
    notes.tag(runs, "d", add=["line3"])
    record.made(runs / "e" / "model.safetensors", "served", runs / "e" / "model.safetensors")
    rule = prune.PruneRule(keep_best=2, metric="image_auroc", older="7d")
    planned = prune.prune(runs, rule, dry_run=True)
    assert sorted(planned.removed) == ["c", "f", "g"]
    assert planned.kept["d"] == "tagged line3"
    assert planned.kept["new"] == "recent"
    assert (runs / "c").is_dir()
    assert sorted(prune.prune(runs, rule, dry_run=False).removed) == ["c", "f", "g"]
    assert not (runs / "c").exists()
    assert sorted(names(queries.find_runs(runs))) == ["a", "b", "d", "e", "new"]


def test_files_of_the_user_stay_when_a_run_is_removed(runs, adctl):
    folder = runs / "a"
    kept = ["notes.txt", "pictures/lamp.jpg", "pictures/results.csv", "checkpoints/mine.txt", "report.md", "script.py"]
    for name in kept:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("adctl schema: mine")
    (folder / "linked").symlink_to(runs / "b", target_is_directory=True)
    (folder / "empty").mkdir()
    (folder / "lineage" / ".x.00000000.1.0123456789abcdef.partial").write_text("unfinished")
    (folder / "scores").mkdir()
    (folder / "scores" / "scores.json").write_text('{"schema": "adctl.scores/1"}')
    (folder / "scores" / "results.jsonl").write_text("{}")
    rule = prune.PruneRule(keep_best=0, metric="image_auroc")
    planned = prune.prune(runs, rule, dry_run=True)
    assert list(planned.left) == ["a"]
    assert (folder / "run.json").is_file()
    result = adctl.json("runs", "rm", "a", "--runs", runs, "--yes")["result"]
    expected = sorted(str(folder / name) for name in (*kept, "linked"))
    assert sorted(result["left"]["a"]) == expected == sorted(map(str, planned.left["a"]))
    assert sorted(str(path) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()) == expected
    assert (runs / "b" / "model.safetensors").is_file()
    assert not (folder / "empty").exists()
    assert names(queries.find_runs(runs, sort="name")) == ["b", "c"]
    (runs / "c" / "notes.txt").write_text("mine")
    told = adctl("runs", "prune", "--keep-best", "1", "--runs", runs, "--yes").stdout
    assert re.search(r"stays +c +1 files that adctl did not write, such as .*notes.txt", told)


def test_all_files_of_a_training_are_known_as_those_of_adctl(patchcore, tmp_path):
    run = shutil.copytree(patchcore.model.parent, tmp_path / "run")
    assert own_files.foreign_files(run) == ()
    assert own_files.own_files(run)[-1] == Path("run.json")


def test_of_two_that_accept_at_the_same_time_one_says_so(runs, monkeypatch):
    both, found = threading.Barrier(2, timeout=60), {}
    find_model = run_folder.find_model

    def wait(*arguments):
        both.wait()
        return find_model(*arguments)

    def accept(run):
        try:
            found[run] = versions.accept(runs, run, "line3")
        except UsageError as error:
            found[run] = error

    monkeypatch.setattr(run_folder, "find_model", wait)
    threads = [threading.Thread(target=accept, args=(run,)) for run in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (lost,) = [run for run, one in found.items() if isinstance(one, UsageError)]
    won = {"a": "b", "b": "a"}[lost]
    assert f"line3 has meanwhile been changed by another process: it means {won}" in str(found[lost])
    assert versions.accepted_run(runs, "line3") == runs / won


def test_prune_removes_nothing_by_a_metric_that_no_run_has(runs):
    planned = prune.prune(runs, prune.PruneRule(keep_best=1, metric="dice"), dry_run=False)
    assert planned.removed == ()
    assert set(planned.kept.values()) == {"no run of its dataset and category has dice"}


def test_a_database_file_that_was_deleted_is_made_again(runs):
    before = index.dump(runs)
    database._engine.cache_clear()
    for path in runs.glob("runs.db*"):
        path.unlink()
    assert names(queries.find_runs(runs, sort="name")) == ["a", "b", "c"]
    assert index.dump(runs) == before


@pytest.mark.parametrize("index_there", [False, True])
def test_runs_in_a_folder_that_cannot_be_written_are_found(runs, monkeypatch, caplog, index_there):
    before = names(queries.find_runs(runs, sort="name"))
    if not index_there:
        database._engine.cache_clear()
        for path in runs.glob("runs.db*"):
            path.unlink()
    record.training_finished(make_run(runs, "later"))
    (make_run(runs, "broken") / "run.json").write_text("{")
    monkeypatch.setattr(reader, "_said", set())

    def refuse(*_, **__):
        raise OutputError(f"Cannot write {runs}: Read-only file system.")

    monkeypatch.setattr(database, "transaction", refuse)
    monkeypatch.setattr(database, "snapshot", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != runs or mode != os.W_OK)
    content = sorted(runs.rglob("*"))
    for _ in range(2):
        assert names(queries.find_runs(runs, sort="name")) == [*before, "later"]
        assert queries.find_run(runs, "later").get("arch") == "padim"
    assert sorted(runs.rglob("*")) == content
    assert [one.message for one in caplog.records if "cannot be written" in one.message] == [
        f"{runs} cannot be written, so each command reads the folders of its runs anew."
    ]
    assert sum("broken" in one.message for one in caplog.records) == 1


@pytest.mark.parametrize("age", ["30", "d", "30y", "-3d"])
def test_ages_that_cannot_be_understood(age):
    with pytest.raises(UsageError, match="is not an age"):
        prune.parse_age(age)


@pytest.mark.parametrize("tag", ['a"b', "a,b", " "])
def test_tags_that_could_not_be_found_again(runs, tag):
    with pytest.raises(UsageError, match="cannot be a tag"):
        notes.tag(runs, "a", add=[tag])


def test_migrations_lead_to_the_same_tables(tmp_path):
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'migrated.db'}")
    with engine.begin() as connection:
        migrate.upgrade(connection, None, "here")
    by_hand = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'created.db'}")
    schema.METADATA.create_all(by_hand)

    def described(one):
        inspector = sqlalchemy.inspect(one)
        return {
            table: (
                {column["name"]: (str(column["type"]), column["nullable"]) for column in inspector.get_columns(table)},
                sorted(entry["name"] for entry in inspector.get_indexes(table) if not entry["unique"]),
                inspector.get_pk_constraint(table)["constrained_columns"],
            )
            for table in ("runs", "artifacts")
        }

    assert described(engine) == described(by_hand)


def test_a_database_of_an_older_version_is_migrated_and_of_a_newer_one_refused(runs):
    with sqlite3.connect(runs / database.FILE) as connection:
        connection.execute("UPDATE adctl_version SET version_num = '9999'")
    database._MIGRATED.clear()
    with pytest.raises(DataError, match="newer adctl"):
        queries.find_runs(runs)


def test_a_damaged_database(runs):
    database._engine.cache_clear()
    database._MIGRATED.clear()
    for path in runs.glob("runs.db*"):
        path.unlink()
    (runs / database.FILE).write_bytes(b"no database at all" * 100)
    with pytest.raises(DataError, match="not a database") as caught:
        queries.find_runs(runs)
    assert "adctl runs index" in caught.value.remedy


@pytest.mark.skipif(sys.platform != "linux", reason="mounts as Linux does")
def test_the_index_is_read_in_a_folder_that_cannot_be_written(runs):
    queries.find_runs(runs)
    (runs / "before").mkdir()
    for words in (("--bind", runs, runs / "before"), ("-o", "remount,ro,bind", runs / "before")):
        if subprocess.run(["mount", *words], capture_output=True, check=False).returncode:
            pytest.skip("mounting needs more rights")
    try:
        assert sorted(names(queries.find_runs(runs / "before"))) == ["a", "b", "c"]
    finally:
        subprocess.run(["umount", "-l", runs / "before"], check=True)


def test_a_database_that_cannot_be_written_costs_no_run(runs, monkeypatch, caplog):
    monkeypatch.setenv(database.VARIABLE, "postgresql://user:secret@127.0.0.1:9/none")
    record.training_finished(make_run(runs, "d"))
    assert "is complete" in caplog.text
    assert "secret" not in caplog.text
    monkeypatch.setenv(database.VARIABLE, "nonsense://x")
    with pytest.raises(AdctlError, match="is not the address"):
        queries.find_runs(runs)


@pytest.fixture(scope="module")
def server():
    """A real server on loopback, which the fixture starts and stops."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgresql(server, monkeypatch):
    """A server that keeps the index."""
    monkeypatch.setenv(database.VARIABLE, server.address)


def test_postgresql(postgresql, tmp_path):
    runs = tmp_path / "runs"
    write_at_once(runs, writers=2, each=5)
    check_complete(runs, 10)
    notes.tag(runs, "w0-3", add=["line3"])
    assert names(queries.find_runs(runs, ["tag=line3 and image_auroc>0.02"])) == ["w0-3"]
    assert names(queries.find_runs(runs, ["image_size=256"], sort="-image_auroc", limit=1))[0].endswith("-4")
    before = index.dump(runs)
    assert index.rebuild(runs).runs == 10
    assert index.dump(runs) == before
    assert not (runs / database.FILE).exists()


def test_a_server_that_goes_away_loses_nothing(server, postgresql, tmp_path, caplog):
    before = names(queries.find_runs(tmp_path / "runs"))
    folder = make_run(tmp_path / "runs", "kept")

    def interrupted():
        with database.transaction(tmp_path / "runs") as connection:
            server.stop()
            connection.execute(sqlalchemy.select(schema.RUNS))

    with pytest.raises(DataError, match="closed the connection"):
        interrupted()
    record.training_finished(folder)
    assert caplog.text.count("The run kept is complete") == 1
    with pytest.raises(DataError) as caught:
        queries.find_runs(tmp_path / "runs")
    assert database.VARIABLE in caught.value.remedy
    server.start()
    assert sorted(names(queries.find_runs(tmp_path / "runs"))) == sorted(["kept", *before])


def test_the_command_line(runs, adctl):
    listed = adctl("runs", "--runs", runs, "--where", "arch=patchcore", "--columns", "name,image_auroc").stdout
    assert listed.splitlines() == ["name  image_auroc", "c     0.8", "b     0.97"]
    assert adctl("runs", "best", "--runs", runs).stdout == f"{runs / 'b' / 'model.safetensors'}\n"
    assert adctl.json("runs", "show", "a", "--runs", runs)["result"]["metrics"]["image_auroc"] == 0.9
    compared = adctl("runs", "compare", "b", "c", "--runs", runs).stdout
    assert "image_auroc" in compared
    assert "backbone" not in compared
    assert adctl("runs", "tag", "b", "line3", "--runs", runs).stdout.split() == ["tags", "line3"]
    assert adctl("runs", "note", "b", "new", "lamp", "--runs", runs).stdout.split() == ["note", "new", "lamp"]
    assert adctl("runs", "lineage", "b", "--runs", runs).stdout.startswith("images")
    assert "asked" in adctl("runs", "rm", "a", "--runs", runs, code=2).stderr
    assert "tagged line3" in adctl("runs", "rm", "b", "--runs", runs, code=2).stderr
    assert adctl("runs", "rm", "a", "--runs", runs, "--yes").stdout.split() == ["removed", "a"]
    assert "tagged line3" in adctl("runs", "prune", "--runs", runs, "--dry-run").stdout
    for _ in range(2):  # the second time it replaces its own file
        adctl("runs", "export", "--runs", runs, "--out", runs.parent / "runs.csv")
    assert (runs.parent / "runs.csv").read_text().startswith("id,name,folder,state,")
    assert adctl("runs", "index", "--runs", runs).stdout.split()[-1] == "2"


def test_the_energy_of_a_training_is_a_metric(runs):
    folder = make_run(runs, "d")
    manifest = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**manifest, "energy_j": 12.5}))
    record.training_finished(folder)
    assert queries.best_run(runs, "energy_j", ["energy_j<13"]).values["name"] == "d"
