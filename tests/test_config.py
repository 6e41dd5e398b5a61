"""Settings: precedence, origins, and errors that name the culprit."""

from __future__ import annotations

import json

import pytest

from adctl.config import COMMANDS, ScoreSettings, TrainSettings, load
from adctl.errors import UsageError


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    import os

    for name in list(os.environ):
        if name.startswith("ADCTL_"):
            monkeypatch.delenv(name)


def test_flag_before_environment_before_file_before_default(tmp_path, monkeypatch):
    file = tmp_path / "adctl.toml"
    file.write_text('seed = 1\nepochs = 11\narch = "padim"\n[train]\nepochs = 12\n', encoding="utf-8")
    monkeypatch.setenv("ADCTL_SEED", "2")
    monkeypatch.setenv("ADCTL_ARCH", "resnet")
    loaded = load(TrainSettings, {"arch": "patchcore", "device": None}, file)
    assert (loaded.settings.arch, loaded.settings.seed, loaded.settings.epochs) == ("patchcore", 2, 12)
    assert loaded.settings.device == "auto"
    assert loaded.origins["arch"] == "--arch"
    assert loaded.origins["seed"] == "ADCTL_SEED"
    assert loaded.origins["epochs"] == str(file)
    assert loaded.origins["device"] == "default"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.toml", "epochs = 7\n[score]\nheatmaps = true\n"),
        ("c.yaml", "epochs: 7\nscore:\n  heatmaps: true\n"),
        ("c.json", '{"epochs": 7, "score": {"heatmaps": true}}'),
    ],
)
def test_all_formats_say_the_same(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert load(TrainSettings, {}, tmp_path / name).settings.epochs == 7
    assert load(ScoreSettings, {}, tmp_path / name).settings.heatmaps is True


def test_options_of_file_and_flags_are_joined(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("[options]\ncoreset_ratio = 0.5\nneighbourhood = 3\n", encoding="utf-8")
    loaded = load(TrainSettings, {"options": {"coreset_ratio": 0.1}}, file)
    assert loaded.settings.options == {"coreset_ratio": 0.1, "neighbourhood": 3}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("c.toml", "epoch = 7", "Did you mean 'epochs'?"),
        ("c.toml", "[train]\nheatmaps = true", "Known: "),
        ("c.toml", "epochs = ", "Correct the place it names."),
        ("c.toml", "train = 3", "Write it as [train]."),
        ("c.ini", "epochs = 7", "Use .toml, .yaml or .json."),
        ("c.json", "[1, 2]", "name = value"),
    ],
)
def test_a_faulty_file_is_refused_with_a_remedy(tmp_path, name, text, says):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        load(TrainSettings, {}, tmp_path / name)
    assert says in caught.value.remedy
    assert caught.value.exit_code == 2


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        load(TrainSettings, {}, tmp_path / "none.toml")


def test_an_empty_file_changes_nothing(tmp_path):
    (tmp_path / "c.yaml").write_text("", encoding="utf-8")
    assert load(TrainSettings, {}, tmp_path / "c.yaml").settings == load(TrainSettings, {}).settings


def test_a_bad_value_names_flag_origin_and_value(monkeypatch):
    monkeypatch.setenv("ADCTL_EPOCHS", "many")
    with pytest.raises(UsageError) as caught:
        load(TrainSettings, {})
    assert "--epochs (from ADCTL_EPOCHS)" in caught.value.message
    assert "Got 'many' instead." in caught.value.message


def test_tables_are_json_safe():
    for cls in COMMANDS.values():
        table = load(cls, {}).table()
        assert json.loads(json.dumps(table)) == table
        assert {entry["from"] for entry in table.values()} == {"default"}


def test_the_list_of_commands_says_what_each_says_of_itself():
    import typer

    from adctl.cli.app import _SUMMARIES, app

    commands = typer.main.get_command(app).commands
    assert {name: commands[name].help for name in commands} == _SUMMARIES
