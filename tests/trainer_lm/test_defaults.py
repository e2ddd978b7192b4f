"""Defaults of a team and of a user, in files below --config and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

TRAIN_LM = "import sys; from trainer_lm.cli import main; sys.exit(main())"
WARM = """from trainer_callback import TrainerCallback
class Warm(TrainerCallback):
    def __init__(self, limit: float = 2.0) -> None: pass
    def on_log(self, metrics): pass
"""


class Place:
    """A site with a plugin, a team's file and a user's."""

    def __init__(self, site: Any, folder: Path) -> None:
        site.install("dist-warm", plugins={"warm": "m_warm:Warm"}, modules={"m_warm": WARM})
        self.site = site
        self.team, self.user = folder / "team.yaml", folder / "home/trainer-lm/defaults.yaml"
        self.user.parent.mkdir(parents=True)
        self.variables = {"XDG_CONFIG_HOME": str(folder / "home")}

    def run(self, *words: str, **variables: str) -> Any:
        if self.team.exists():
            variables = {"TRAINER_CONFIG": str(self.team), **variables}
        words = ("-c", TRAIN_LM, "--print_config", *words)
        return self.site.python(*words, **{**self.variables, **variables})

    def show(self, *words: str, **variables: str) -> dict[str, str]:
        done = self.run(*words, **variables)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return dict(line.split(": ", 1) for line in done.stdout.splitlines())


@pytest.fixture
def place(site: Any, tmp_path: Path) -> Place:
    return Place(site, tmp_path)


def test_each_value_comes_from_the_strongest_that_has_it_and_says_from_where(
    place: Place, tmp_path: Path
) -> None:
    place.user.write_text("seed: 1\nepochs: 1\nbatch_size: 1\nn_layer: 1\n")
    place.team.write_text("seed: 2\nepochs: 2\nbatch_size: 2\n")
    (tmp_path / "own.yaml").write_text("seed: 3\nepochs: 3\n")
    values = place.show("--config", str(tmp_path / "own.yaml"), "--seed", "4")
    assert values["seed"] == "4  # command line"
    assert values["epochs"] == f"3  # {tmp_path / 'own.yaml'}"
    assert values["batch_size"] == f"2  # {place.team}"
    assert values["n_layer"] == f"1  # {place.user}"
    assert values["n_head"] == "4  # default"


def test_no_file_is_read_where_the_variable_names_the_null_device(place: Place) -> None:
    place.user.write_text("seed: 1\n")
    assert place.show(TRAINER_CONFIG="/dev/null")["seed"].endswith("# default")
    assert place.show(TRAINER_CONFIG="")["seed"] == f"1  # {place.user}"


def test_the_options_of_a_plugin_hold_where_it_is_used_and_nowhere_else(place: Place) -> None:
    place.team.write_text("warm_limit: 7\n")
    assert "warm_limit" not in place.show()
    assert place.show("--warm")["warm_limit"] == f"7.0  # {place.team}"


def test_a_plugin_that_the_team_uses_can_be_left_out(place: Place) -> None:
    place.team.write_text("warm_limit: 7\nwarm: true\n")
    assert place.show()["warm"] == f"true  # {place.team}"
    assert "warm" not in place.show("--no_warm")


def test_an_option_that_is_none_here_is_a_warning_and_the_run_goes_on(place: Place) -> None:
    place.team.write_text("epochz: 7\ncolour: blue\nseed: 5\n")
    done = place.run()
    assert done.returncode == 0
    what = "there is no such option here, so it has no effect."
    assert done.stderr.splitlines() == [
        f"train-lm: warning: {place.team}, line 1, epochz: 7: {what} Did you mean 'epochs'?",
        f"train-lm: warning: {place.team}, line 2, colour: blue: {what}",
    ]
    assert f"seed: 5  # {place.team}" in done.stdout


def test_a_wrong_value_and_a_file_that_is_not_there_are_refused(place: Place) -> None:
    place.team.write_text("seed: many\n")
    assert f"{place.team}, line 1, seed: many" in place.run().stderr
    place.team.unlink()
    done = place.run(TRAINER_CONFIG="gone.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("train-lm: TRAINER_CONFIG gone.yaml cannot be read")


def test_a_team_can_block_a_plugin(place: Place) -> None:
    place.team.write_text("no_plugin: [warm]\n")
    done = place.run("--warm")
    assert done.returncode == 2
    assert "--warm cannot be used: blocked by --no_plugin" in done.stderr


LIVE = "from trainer_callback import hookimpl\n@hookimpl\ndef offer_defaults(): return {offer}\n"


def offer(place: Place, value: str, name: str = "lab") -> None:
    modules = {f"m_{name}": LIVE.format(offer=value)}
    place.site.install(f"dist-{name}", plugins={name: f"m_{name}"}, modules=modules)


def test_what_a_live_plugin_offers_has_its_name_as_the_origin_and_gives_way_to_files(
    place: Place,
) -> None:
    offer(place, "{'seed': 8, 'epochs': 8, 'warm': True, 'warm_limit': 4.5}")
    place.user.write_text("epochs: 2\n")
    values = place.show()
    assert values["seed"] == "8  # lab (dist-lab 1.0)"
    assert values["epochs"] == f"2  # {place.user}"
    assert values["warm_limit"] == "4.5  # lab (dist-lab 1.0)"
    assert place.show("--seed", "1")["seed"] == "1  # command line"
    assert "warm_limit" not in place.show("--no_warm")


@pytest.mark.parametrize(
    ("offered", "message"),
    [
        ("{'seed': 'many'}", "lab (dist-lab 1.0), seed: many: "),
        ("{'sead': 1}", "there is no such option here, so it has no effect. Did you mean 'seed'?"),
        ("{'no_plugin': ['warm']}", "this cannot be offered"),
        ("{'seed': {1: 2}}", "the value of 'seed' is a mapping"),
        ("['seed']", "offer_defaults must return a dict of options or None, got ['seed']"),
        ("1 / 0", "failed in offer_defaults: ZeroDivisionError"),
    ],
)
def test_a_wrong_offer_is_a_warning_that_names_the_plugin(
    place: Place, offered: str, message: str
) -> None:
    offer(place, offered)
    done = place.run()
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "lab (dist-lab 1.0)" in done.stderr
    assert message in done.stderr


def test_of_two_offers_the_first_holds_and_the_other_is_said(place: Place) -> None:
    offer(place, "{'seed': 1}", "a")
    offer(place, "{'seed': 2}", "b")
    done = place.run()
    assert "seed: 1  # a (dist-a 1.0)" in done.stdout
    assert "b (dist-b 1.0), seed: 2: this has no effect" in done.stderr


MAKES = """from trainer_callback import hookimpl
from m_warm import Warm
@hookimpl
def make_callbacks(options): return [Warm(limit=9)]
"""
NAMES = """
from trainer_lm.cli import _read
print([p.callback.__class__.__name__ + " " + p.name for p in _read(sys.argv[1:]).plugins])
"""


@pytest.mark.parametrize(
    ("words", "made"), [((), ["Warm lab"]), (("--warm",), ["Warm warm"]), (("--no_warm",), [])]
)
def test_what_a_live_plugin_makes_gives_way_to_a_flag_of_the_user(
    place: Place, words: tuple[str, ...], made: list[str]
) -> None:
    place.site.install("dist-lab", plugins={"lab": "m_lab"}, modules={"m_lab": MAKES})
    done = place.site.python("-c", "import sys" + NAMES, *words, **place.variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{made}\n"
    said = "lab (dist-lab 1.0) makes its own Warm, which gives way to what was said of --warm."
    assert (said in done.stderr) == bool(words)
