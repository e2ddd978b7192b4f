"""Plugins chosen by flags, or by a file, in a program that is not `train-lm`."""

import subprocess
import sys

import pytest

from trainer_callback import PluginError, UsageError
from trainer_lm.plugin_options import from_args, from_config


def test_flags_of_plugins_are_taken_off_a_command_line():
    words = ["--model", "x", "--early_stopping", "--early_stop_patience", "3", "--lr=1e-3", "-v"]
    (made,), rest = from_args(words)
    assert made.name == "early_stopping"
    assert made.callback.patience == 3
    assert rest == ["--model", "x", "--lr=1e-3", "-v"]
    assert from_args(["--model", "x"]) == ([], ["--model", "x"])


def test_an_option_without_its_plugin_is_refused():
    with pytest.raises(PluginError, match=r"--early_stop_patience is given without --early_stopp"):
        from_args(["--early_stop_patience", "3"])


def test_a_flag_that_the_program_has_too_is_not_taken_from_it():
    words = ["--early_stopping", "--early_stop_patience", "2"]
    taken = {"--early_stop_patience": "early_stop_patience"}
    with pytest.raises(PluginError, match="adds --early_stop_patience, which is an option of the"):
        from_args(words, taken=taken)
    assert from_args(["--early_stop_patience", "2"], taken=taken) == (
        [],
        ["--early_stop_patience", "2"],
    )


def test_a_wrong_value_names_the_flag_and_the_program():
    program = (
        "from trainer_lm.plugin_options import from_args\n"
        "from_args(['--early_stopping', '--early_stop_patience', 'x'])\n"
    )
    words = [sys.executable, "-c", program]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "argument --early_stop_patience: invalid int value: 'x'. See -c" in found.stderr


def test_the_file_of_a_command_chooses_the_same_plugins(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("early_stopping: true\nearly_stop_patience: 4\nema: true\n")
    made = {each.name: each.callback for each in from_config(file)}
    assert made.keys() == {"early_stopping", "ema"}
    assert made["early_stopping"].patience == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: 3\n", "line 1, epochs: 3: this is an option of train-lm, and no plugin's"),
        ("early_stop_patiense: 3\n", "Did you mean 'early_stop_patience'?"),
    ],
)
def test_what_is_no_plugins_in_a_file_is_refused(text, said, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        from_config(file)
    assert said in str(caught.value)


def test_the_help_shows_the_plugins_and_leaves_the_program_its_own(capsys):
    _, rest = from_args(["--help"])
    assert rest == ["--help"]
    assert "--early_stop_patience N" in capsys.readouterr().out
