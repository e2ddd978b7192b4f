"""The fixture `train_lm`: the command in the process of a test."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path

import pytest
import torch

from trainer.testing.leftovers import read_files
from trainer_lm.testing import TrainLM

PLUGIN = """
import logging, os, sys, threading, time, warnings
import torch
from trainer_callback import TrainerCallback

class Noisy(TrainerCallback):
    def on_train_start(self):
        {body}
"""


@pytest.fixture
def noisy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a module with a callback that does something at the start; returns its option."""

    def write(name: str, body: str) -> list[str]:
        monkeypatch.chdir(tmp_path)
        Path(f"{name}.py").write_text(PLUGIN.format(body=body))
        return ["--callback", f"{name}:Noisy"]

    return write


def test_a_run_is_what_the_command_makes_of_it(train_lm: TrainLM, tmp_path: Path) -> None:
    done = train_lm("--max_steps 3")
    assert done.exit_code == 0, done.stderr
    assert done.result is not None
    assert (done.result.status, done.result.steps) == ("finished", 3)
    assert done.output_dir == tmp_path / "run"
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()
    assert "3 updates" in done.stdout
    assert "tokens to train on" in done.stderr
    assert done.left == ()


def test_a_second_call_resumes_the_first(train_lm: TrainLM) -> None:
    train_lm(["--max_steps", "2"])
    done = train_lm(["--max_steps", "5", "--resume", "--quiet"])
    assert done.result is not None
    assert done.result.steps == 5


def test_words_and_a_file_go_before_what_makes_it_tiny(train_lm: TrainLM, tmp_path: Path) -> None:
    file = tmp_path / "wide.yaml"
    file.write_text("n_embd: 16\nepochs: 1\n")
    done = train_lm(f"--config {file} --n_head 2 --print_config")
    options = dict(line.split("  #")[0].split(": ", 1) for line in done.stdout.splitlines())
    assert [options[name] for name in ("n_embd", "n_head", "epochs")] == ["16", "2", "1"]
    assert done.output_dir is None


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--patience 3", 2, "train-lm: "),
        ("--max_steps some", 2, "max_steps"),
        ("--help", 0, ""),
        ("--version", 0, ""),
    ],
)
def test_what_trains_nothing_gives_its_code(
    train_lm: TrainLM, words: str, code: int, said: str
) -> None:
    done = train_lm(words)
    assert (done.exit_code, done.result, done.output_dir) == (code, None, None)
    assert said in done.stderr


def test_a_callback_that_fails_gives_its_code_and_its_traceback(train_lm, noisy) -> None:
    done = train_lm(noisy("failing", "raise KeyError('from the callback')"))
    assert done.exit_code == 1
    assert "from the callback" in done.stderr
    assert done.output_dir is not None
    assert done.result is None


def test_what_another_process_prints_is_kept(train_lm, noisy, capfd) -> None:
    done = train_lm(noisy("calling", "os.system('echo from a child; echo and an error >&2')"))
    assert "from a child\n" in done.stdout
    assert "and an error\n" in done.stderr
    assert capfd.readouterr() == ("", "")


def test_a_warning_is_printed_and_neither_raised_nor_recorded(train_lm, noisy) -> None:
    done = train_lm(noisy("warning", "warnings.warn('mind the gap')"))
    assert done.exit_code == 0, done.stderr
    assert "UserWarning: mind the gap" in done.stderr


def test_a_thread_that_is_left_is_named(train_lm, noisy) -> None:
    end = threading.Event()
    sys.modules["end_of_test"] = end  # type: ignore[assignment]
    body = "threading.Thread(target=sys.modules['end_of_test'].wait, name='lingers').start()"
    try:
        assert train_lm(noisy("lingering", body)).left == ("lingers",)
    finally:
        end.set()
        del sys.modules["end_of_test"]


WILD = (
    "os.environ['WILD'] = '1'; os.chdir('/'); torch.set_default_dtype(torch.float64); "
    "sys.argv.append('wild'); logging.getLogger().setLevel(1); warnings.simplefilter('always'); "
    "torch.set_num_threads(3); logging.disable(50)"
)


def read_process() -> dict[str, object]:
    return {
        "environment": dict(os.environ),
        "directory": Path.cwd(),
        "handlers": [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)],
        "root": (logging.getLogger().level, list(logging.getLogger().handlers)),
        "levels": {
            name: logging.getLogger(name).level
            for name in ("trainer", "trainer.lm", "trainer_ema", "wild")
        },
        "disabled": logging.root.manager.disable,
        "filters": (list(warnings.filters), warnings.showwarning),
        "threads": set(threading.enumerate()),
        "streams": (sys.stdout, sys.stderr, os.fstat(1)[:2], os.fstat(2)[:2]),
        "arguments": list(sys.argv),
        "paths": list(sys.path),
        "random": (random.getstate(), torch.get_rng_state().tolist()),
        "torch": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()),
        "files": read_files(),
    }


@pytest.mark.parametrize("body", ["pass", WILD, "raise KeyError"], ids=["good", "wild", "failing"])
def test_the_process_is_as_it_was(train_lm, noisy, body: str, request) -> None:
    words = noisy(f"process_{request.node.callspec.id}", body)
    train_lm(words)  # libraries open what they keep for good
    before = read_process()
    train_lm([*words, "--ema", "--overwrite"])
    after = read_process()
    for name, value in before.items():
        assert after[name] == value, name


def test_a_signal_ends_the_run_and_not_the_test(train_lm, noisy) -> None:
    done = train_lm(noisy("stopping", "os.kill(os.getpid(), 15)"))
    assert done.exit_code == 143
    assert done.result is not None
    assert done.result.status == "terminated"


def test_the_log_of_the_tests_goes_on(tmp_path: Path) -> None:
    test = """
        import logging

        def test_it(train_lm):
            assert train_lm("--max_steps 1").exit_code == 0
            logging.getLogger("mine").warning("after the run")
    """
    (tmp_path / "test_it.py").write_text(textwrap.dedent(test))
    words = ("-q", "--log-file=log.txt", "-p", "no:cacheprovider", "test_it.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "after the run" in (tmp_path / "log.txt").read_text()


def test_its_pytest_plugin_imports_neither_torch_nor_the_command() -> None:
    code = (
        "import sys, trainer_lm.fixtures\n"
        "print(sorted(n for n in sys.modules if n.split('.')[0] in\n"
        "    ('trainer', 'trainer_callback', 'trainer_lm', 'torch')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['trainer_lm', 'trainer_lm.fixtures']"
