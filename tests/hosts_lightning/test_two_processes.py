"""Two processes (DDP, gloo): stops are agreed on, there is one record, and nobody waits in vain."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightning")

import torch

from .runs import assert_same_records, read_records

SCRIPT = Path(__file__).parent / "pair.py"


@pytest.fixture
def pair(tmp_path):
    """Runs a scenario in two processes; returns its exit code and what it has printed."""

    def run(where, scenario, timeout=200):
        names = {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
        command += ["--standalone", str(SCRIPT), where, scenario]
        with (tmp_path / "output.txt").open("w") as file:
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=tmp_path,
                env={**os.environ, **names},
                start_new_session=True,
            )
            try:
                code = process.wait(timeout)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        return code, (tmp_path / "output.txt").read_text()

    return run


def read(place, where):
    return [json.loads((place / f"{where}-{rank}.json").read_text()) for rank in range(2)]


def assert_same(place):
    for rank in range(2):
        home, host = (torch.load(place / f"{where}-{rank}.pt") for where in ("home", "host"))
        for name, value in home.items():
            assert torch.equal(value, host[name]), name
    assert [each["outcome"] for each in read(place, "host")] == [
        each["outcome"] for each in read(place, "home")
    ]
    assert_same_records(read_records(place / "host/plugins"), read_records(place / "home"))


def test_two_processes_decide_and_record_as_in_a_trainer_and_after_a_kill(pair, tmp_path):
    assert pair("home", "plain")[0] == 0
    code, output = pair("host", "plain")
    assert code == 0, output
    assert_same(tmp_path)
    seen = [(tmp_path / f"seen-{rank}.txt").read_text() for rank in range(2)]
    assert seen[0] != seen[1]
    (tmp_path / "host").rename(tmp_path / "first")
    for rank in range(2):
        (tmp_path / f"seen-{rank}.txt").unlink()
    assert pair("host", "killed")[0] != 0
    code, output = pair("host", "resumed")
    assert code == 0, output
    assert_same(tmp_path)
    assert [(tmp_path / f"seen-{rank}.txt").read_text() for rank in range(2)] == seen


def test_what_one_process_wants_all_of_them_do(pair, tmp_path):
    code, output = pair("host", "one stops")
    assert code == 0, output
    found = read(tmp_path, "host")
    assert [each["outcome"][:4] for each in found] == [["stopped", "callback", "StopsOne", 5]] * 2
    assert (tmp_path / "host/kept/requested-step=2.ckpt").exists()


def test_a_callback_that_fails_in_one_process_is_switched_off_in_all(pair, tmp_path):
    code, output = pair("host", "one fails")
    assert code == 0, output
    assert [each["switched_off"] for each in read(tmp_path, "host")] == [["FailsOne"]] * 2


def test_a_failure_in_one_process_ends_both(pair):
    code, output = pair("host", "one breaks", timeout=150)
    assert code != 0
    assert "strong" in output


def test_a_loss_that_nobody_has_averaged_is_averaged(pair, tmp_path):
    code, output = pair("host", "differs")
    assert code == 0, output
    assert [each["val_loss"] for each in read(tmp_path, "host")] == [0.5, 0.5]
