"""A system that is not POSIX: the package is imported, training is refused in a sentence."""

import json
import subprocess
import sys

import pytest

WINDOWS = """import sys, signal
sys.modules.update(dict.fromkeys(("fcntl", "resource", "termios", "pwd", "grp")))
del signal.pthread_sigmask
"""
SENTENCE = "trainer needs a POSIX system such as Linux. On Windows, use WSL."


def run(code):
    """Runs `code` where what only POSIX has cannot be imported."""
    return subprocess.run(
        [sys.executable, "-c", WINDOWS + code], capture_output=True, text=True, check=False
    )


def test_the_trainer_is_refused_in_one_sentence():
    done = run("from trainer import Trainer")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(f"UsageError: {SENTENCE}")


def test_the_rest_of_the_package_is_imported():
    code = "import trainer, trainer.testing.fixtures\nprint(trainer.TrainerConfig(epochs=3).epochs)"
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


@pytest.mark.parametrize(
    ("command", "words"), [("trainer_lm", []), ("trainer_tool", ["snapshot", "list", "run"])]
)
def test_a_command_says_it_in_one_line(command, words):
    done = run(f"from {command}.cli import main\nsys.exit(main({words}))")
    program = {"trainer_lm": "train-lm", "trainer_tool": "trainer"}[command]
    assert (done.returncode, done.stderr) == (2, f"{program}: {SENTENCE}\n")


def test_the_command_lists_plugins():
    done = run("from trainer_tool.cli import main\nsys.exit(main(['plugins', '--json']))")
    assert done.returncode == 0, done.stderr
    assert "ema" in [row["name"] for row in json.loads(done.stdout)]
