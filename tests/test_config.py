"""Settings: precedence, origins, and errors that name the setting."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from conftest import ROOT

from adctl.config import (
    COMMANDS,
    OTHER_VARIABLES,
    CalibrateSettings,
    ExportSettings,
    ScoreSettings,
    TrainSettings,
    load,
    options_of,
    validated,
)
from adctl.errors import UsageError


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    import os

    for name in list(os.environ):
        if name.startswith("ADCTL_"):
            monkeypatch.delenv(name)


PERCENT = {
    "2%": 0.02,
    " 2 %": 0.02,
    "0.1%": 0.001,
    "0.5": 0.5,
    "2": "2 means 200 %; write 0.02 or 2%.",
    "1": "1 means 100 %; write 0.01 or 1%.",
    "100%": "See 'adctl calibrate --help'.",
    "0%": "See 'adctl calibrate --help'.",
    "x%": "See 'adctl calibrate --help'.",
}


@pytest.mark.parametrize("typed", PERCENT)
def test_shares_may_be_given_in_percent(typed):
    expected = PERCENT[typed]
    if isinstance(expected, float):
        assert load(CalibrateSettings, {"max_false_alarm": typed}).settings.max_false_alarm == expected
        return
    with pytest.raises(UsageError, match="--max-false-alarm") as caught:
        load(CalibrateSettings, {"max_false_alarm": typed})
    assert caught.value.remedy == expected


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


ANCHORS = [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise("abcdefghi")]


@pytest.mark.parametrize("text", ["a: &a {b: *a}", "\n".join(["a: &a [x, x, x]", *ANCHORS])])
def test_a_file_that_repeats_itself_without_end_is_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(f"options: {{k: 1}}\n{text}", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be read"):
        load(TrainSettings, {}, tmp_path / "c.yaml")


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


def test_every_option_is_described_with_its_true_default():
    for command, cls in COMMANDS.items():
        defaults = vars(cls())
        for option in options_of(command):
            assert option.help.endswith("."), f"{command} {option.name}"
            assert option.group
            if option.variable:
                assert option.default == defaults[option.name]
                assert option.variable == f"ADCTL_{option.name.upper()}"


def test_an_option_says_flags_type_bounds_and_choices():
    options = {option.name: option for option in options_of("train")}
    assert options["ema"].bounds == "at least 0, below 1"
    assert options["precision"].choices == ("auto", "32", "16", "bf16")
    assert options["batch_size"].type == "'auto' or 'max' or whole number"
    assert options["tensorboard"].flags == ("--tensorboard", "--no-tensorboard")
    assert options["options"].flags == ("--set",)
    assert options["seeds"].flags == ()
    assert options["learning_rate"].shown_default == "0.001, or detector's"
    assert options["dry_run"].variable == ""


def test_groups_stand_together_and_train_has_the_main_ones():
    for command in COMMANDS:
        groups = [option.group for option in options_of(command)]
        assert [group for group, before in zip(groups, [None, *groups], strict=False) if group != before] == list(
            dict.fromkeys(groups)
        )
        assert len(groups) <= 12 or len(set(groups)) > 1
    assert list(dict.fromkeys(option.group for option in options_of("train"))) == [
        "Data", "Detector", "Classifier", "Training", "Output", "Compute",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("variable", "meant"),
    [("ADCTL_EPOCS", "ADCTL_EPOCHS"), ("ADCTL_LR", "ADCTL_LEARNING_RATE"), ("ADCTL_XYZZY", None)],
)
def test_a_typo_in_a_variable_is_reported(monkeypatch, variable, meant):
    monkeypatch.setenv(variable, "3")
    with pytest.raises(UsageError) as caught:
        load(TrainSettings, {})
    assert variable in caught.value.message
    assert (f"Did you mean '{meant}'?" in caught.value.remedy) == (meant is not None)


def test_variables_of_other_commands_and_other_parts_are_left_alone(monkeypatch):
    for name in (*OTHER_VARIABLES, "ADCTL_REPEATS", "ADCTL_WATCH", "ADCTL_INCLUDE"):
        if name != "ADCTL_CONFIG":
            monkeypatch.setenv(name, "5")
    assert load(TrainSettings, {}).settings == TrainSettings()


def test_every_variable_that_the_code_reads_is_known():
    import re

    known = {option.variable for command in COMMANDS for option in options_of(command)} | set(OTHER_VARIABLES)
    for path in (ROOT / "adctl").rglob("*.py"):
        read = re.findall(r"""environ(?:\.get\(|\[)["'](ADCTL_\w+)""", path.read_text(encoding="utf-8"))
        assert set(read) <= known, path


def test_other_words_for_a_setting_are_understood(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("lr = 0.1", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        load(TrainSettings, {}, file)
    assert caught.value.remedy == "Did you mean 'learning_rate'?"


def test_lists_are_read_from_texts_single_values_and_json(monkeypatch):
    assert load(ExportSettings, {"format": "onnx, openvino"}).settings.format == ("onnx", "openvino")
    assert load(ScoreSettings, {"images": "parts"}).settings.images == ("parts",)
    monkeypatch.setenv("ADCTL_FORMAT", '["onnx"]')
    assert load(ExportSettings, {}).settings.format == ("onnx",)
    monkeypatch.setenv("ADCTL_OPTIONS", '{"coreset_ratio": 0.1}')
    assert load(TrainSettings, {}).settings.options == {"coreset_ratio": 0.1}
    monkeypatch.setenv("ADCTL_OPTIONS", "{broken")
    with pytest.raises(UsageError, match="ADCTL_OPTIONS cannot be read"):
        load(TrainSettings, {})


@pytest.mark.parametrize("given", [0, "none", float("nan")])
def test_each_type_that_a_value_may_have_is_named(given):
    with pytest.raises(UsageError) as caught:
        load(TrainSettings, {"batch_size": given})
    assert "'auto' or " in caught.value.message


@pytest.mark.parametrize("given", [float("inf"), float("nan")])
def test_a_threshold_is_finite(given):
    with pytest.raises(UsageError, match="--threshold"):
        load(CalibrateSettings, {"threshold": given})


def test_an_unknown_keyword_is_refused_with_the_closest_name():
    with pytest.raises(UsageError) as caught:
        validated(TrainSettings, {"epoch": 3})
    assert "Did you mean 'epochs'?" in caught.value.remedy
