"""Plugins that grow older: options renamed and removed, deprecations, plugins that are gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

TRAIN_LM = """
import sys, warnings
sys.warnoptions.clear()
warnings.resetwarnings()
warnings.simplefilter("ignore")
from trainer_lm.cli import main
sys.exit(main())
"""
SPIKE = """
import warnings
from trainer_callback import TrainerCallback
class Spike(TrainerCallback):
    renamed_options = {"limit": "factor", "loud": "verbose"}
    removed_options = {"window": "the mean is over the epoch now. Leave it out."}
    def __init__(self, factor: float = 2.0, verbose: bool = False) -> None: pass
    def on_log(self, metrics): pass
"""


@pytest.fixture
def spike(site: Any) -> Any:
    site.install("dist-spike", plugins={"spike": "m_spike:Spike"}, modules={"m_spike": SPIKE})
    return site


def show(site: Any, *words: str) -> tuple[dict[str, str], str]:
    """What `--print_config` says of each option, and what was said beside it."""
    done = site.python("-c", TRAIN_LM, "--print_config", *words)
    assert done.returncode == 0, done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.splitlines()), done.stderr


def refuse(site: Any, *words: str) -> str:
    done = site.python("-c", TRAIN_LM, "--print_config", *words)
    assert done.returncode == 2, done.stdout
    return str(done.stderr)


def test_a_renamed_flag_works_and_the_new_name_is_said(spike: Any) -> None:
    values, said = show(spike, "--spike", "--spike_limit", "5", "--no_spike_loud")
    assert values["spike_factor"] == "5.0  # command line"
    assert values["spike_verbose"] == "false  # command line"
    label = "spike (dist-spike 1.0)"
    assert said.splitlines() == [
        f"train-lm: warning: --spike_limit of {label} is called --spike_factor now.",
        f"train-lm: warning: --spike_loud of {label} is called --spike_verbose now.",
    ]


def test_both_names_with_one_value_are_accepted_and_with_two_refused(spike: Any) -> None:
    assert show(spike, "--spike", "--spike_limit", "5", "--spike_factor", "5")[0]
    said = refuse(spike, "--spike", "--spike_limit", "5", "--spike_factor", "6")
    assert "--spike_limit is called --spike_factor now, and both are given" in said
    assert "Keep --spike_factor." in said


def test_an_old_file_names_what_was_renamed_and_removed_and_runs(spike: Any) -> None:
    file = spike.folder / "old.yaml"
    file.write_text("spike: true\nspike_limit: 7\nspike_window: [3, 4]\n")
    values, said = show(spike, "--config", str(file))
    assert values["spike_factor"] == f"7.0  # {file}"
    assert "spike_window" not in values
    assert f"{file}, line 2, spike_limit: 7: in spike (dist-spike 1.0) this is called" in said
    assert "line 3, spike_window: [3, 4]: this was removed from spike (dist-spike 1.0)" in said
    assert "the mean is over the epoch now" in said


def test_a_removed_flag_that_is_typed_is_refused_with_the_reason(spike: Any) -> None:
    said = refuse(spike, "--spike", "--spike_window", "3")
    assert "--spike_window was removed from spike (dist-spike 1.0): the mean is over the" in said


def test_old_flags_are_not_in_the_help(spike: Any) -> None:
    done = spike.python("-c", TRAIN_LM, "--help")
    assert "--spike_factor" in done.stdout
    assert "--spike_limit" not in done.stdout
    assert "--spike_window" not in done.stdout
    assert "--spike_window" not in spike.command("plugins", "list").stdout


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"limit": "factor"', '"limit": "facto"', "the constructor has no such option"),
        ('"limit": "factor"', '"factor": "verbose"', "'factor' is an old name in renamed_options"),
        ('{"limit": "factor", "loud": "verbose"}', '["limit"]', "must map names to texts"),
    ],
)
def test_wrong_names_of_old_options_break_the_plugin(
    site: Any, old: str, new: str, message: str
) -> None:
    modules = {"m_spike": SPIKE.replace(old, new)}
    site.install("dist-spike", plugins={"spike": "m_spike:Spike"}, modules=modules)
    assert message in refuse(site, "--spike")


def test_in_code_a_renamed_option_warns_and_a_removed_one_is_refused(spike: Any) -> None:
    source = """
import warnings
from trainer_callback.plugins import create
warnings.simplefilter("ignore")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    create("spike", limit=3.0)
said = [str(each.message) for each in caught]
try:
    create("spike", window=3)
except Exception as error:
    said.append(str(error))
"""
    assert spike.evaluate(source, "said") == [
        "spike (dist-spike 1.0): 'limit' is called 'factor' now.",
        (
            "spike (dist-spike 1.0): 'window' was removed: the mean is over the epoch now. "
            "Leave it out."
        ),
    ]


def test_a_deprecation_warning_of_a_plugin_is_shown_once_with_its_distribution(
    site: Any,
) -> None:
    module = SPIKE + "for _ in range(2): warnings.warn('x goes', DeprecationWarning)\n"
    site.install("dist-spike", plugins={"spike": "m_spike:Spike"}, modules={"m_spike": module})
    said = show(site, "--spike")[1]
    line = len(module.splitlines())
    assert said == (
        f"train-lm: warning: spike (dist-spike 1.0): x goes (m_spike.py, line {line})\n"
    )


TINY = (
    *("--n_layer", "1", "--n_head", "1", "--n_embd", "8", "--block_size", "8", "--batch_size", "2"),
    *("--dataset", "tiny.txt", "--cache_dir", "tokens", "--output_dir", "out"),
    *("--max_steps", "1", "--lr_schedule", "constant", "--device", "cpu", "--quiet"),
)


def test_the_file_of_a_run_tells_which_plugin_to_install_where_it_is_gone(
    spike: Any, tmp_path: Path
) -> None:
    (tmp_path / "tiny.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 20)
    done = spike.python("-c", TRAIN_LM, *TINY, "--spike", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = (tmp_path / "out" / "config.yaml").read_text()
    assert "spike_factor: 2.0  # of dist-spike 1.0\n" in config
    (tmp_path / "gone").mkdir()
    for file in spike.folder.glob("*spike*"):
        file.rename(tmp_path / "gone" / file.name)
    wanted = "belongs to a plugin that is not installed: pip install dist-spike"
    for words in (("--config", "out/config.yaml"), ("--spike", *TINY, "--resume")):
        done = spike.python("-c", TRAIN_LM, *words, cwd=tmp_path)
        assert done.returncode == 2, done.stdout
        assert wanted in done.stderr
