"""The scripts of docs/transformers.md run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", minversion="5.6")

from .driver import MARKS, scenarios

PAGE = (Path(__file__).parents[2] / "docs" / "transformers.md").read_text()
SCRIPTS = dict(re.findall(r"```python file=(\S+)\n(.*?)```", PAGE, re.DOTALL))

MAKE = """
import sys
import torch
from run import main
from train import Regression, make_data
import transformers


def make_trainer(args):
    data = make_data(0, 32), make_data(1, 16)
    return transformers.Trainer(Regression(), args, train_dataset=data[0], eval_dataset=data[1])


main(make_trainer)
"""


TWO = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]


def run(place, *words, fails=False):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *words],
        capture_output=True,
        text=True,
        cwd=place,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode != 0) is fails, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def place(tmp_path):
    for name, text in SCRIPTS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_complete_script_trains_and_goes_on(place):
    first = run(place, "train.py")
    assert (place / "runs/transformers/plugins/metrics.jsonl").exists()
    (done,) = re.findall(r"trained \d+ updates", first)
    assert done in run(place, "train.py")


@pytest.mark.parametrize("again", range(3))  # an end that aborts does so in some of them
def test_the_complete_script_trains_in_two_processes(place, again):
    script = SCRIPTS["train.py"].replace("num_train_epochs=20", "num_train_epochs=2, use_cpu=True")
    (place / "train.py").write_text(script)
    said = run(place, *TWO, "train.py")
    assert said.count("trained") == 2  # what two of them print may be mixed
    assert "32/32" in said


def test_processes_that_the_trainer_does_not_know_of_are_refused(place):
    said = run(place, *TWO, "train.py", fails=True)
    assert "Hugging Face knows of 1 of 2 processes" in said
    assert "On CPUs set use_cpu=True" in said
    assert not (place / "runs/transformers/plugins").exists()


def test_a_script_with_options_of_its_own_takes_flags_of_plugins(place):
    parts = (place / "train.py").read_text().partition("trainer = transformers.Trainer(")
    (place / "train.py").write_text(parts[0])
    (place / "command.py").write_text(MAKE)
    options = ["--output_dir", "out", "--eval_strategy", "epoch", "--num_train_epochs", "3"]
    options += ["--report_to", "none", "--learning_rate", "0"]
    run(place, "command.py", *options, "--early_stopping", "--early_stop_patience", "1")
    assert (place / "out" / "checkpoint-8").exists()
    assert not (place / "out" / "checkpoint-12").exists()


@pytest.mark.parametrize("name", ["events.py", "theirs.py"])
def test_the_other_scripts_run(name, place):
    run(place, name)


def test_the_page_has_a_row_for_each_case():
    rows = dict(re.findall(r"^\| ([^|]+) \| ((?:same|approximate|this host)[^|]*) \|$", PAGE, re.M))
    assert rows == {case.name: MARKS.get(case.name, "same") for case in scenarios.CASES}
