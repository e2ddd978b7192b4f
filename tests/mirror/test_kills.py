"""kill -9 amid an upload, and the disk is lost with the process: what is there is whole, and a run
that goes on from it ends as one that was never killed.
"""

import json
import os
import shutil
import signal
import traceback

import pytest
import torch

from trainer_early_stopping import EarlyStoppingCallback
from trainer_mirror import MirrorCallback
from trainer_mirror.store import Store, read_sizes


def in_a_child(work):
    """Calls `work` in a process of its own; returns its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def check_whole(store, url):
    """Asserts that each copy that has a list is what the list says."""
    for copy in Store(url).copies():
        for name, told in copy.files.items():
            assert read_sizes(store / copy.name / name) == told
        manifest = json.loads(next((store / copy.name).rglob("manifest.json")).read_bytes())
        assert manifest["step"] == copy.step


@pytest.mark.slow  # two processes for each moment
@pytest.mark.parametrize("kills", [(1,), (2,), (5,), (7,), (11,), (13,), (16,), (20,), (8, 3)])
def test_killed_amid_an_upload_it_ends_on_an_empty_disk_as_if_it_had_not_been(
    make, url, store, faults, tmp_path, kills
):
    def train(place, kill_at=None):
        faults.kill_at = kill_at
        callbacks = [MirrorCallback(url), EarlyStoppingCallback(patience=9)]
        make(*callbacks, place=place, pause=0.05).train("auto")

    make(EarlyStoppingCallback(patience=9), place=tmp_path / "whole").train()
    for kill_at in kills:
        code = in_a_child(lambda kill_at=kill_at: train(tmp_path / "lost", kill_at))
        assert code == -signal.SIGKILL
        shutil.rmtree(tmp_path / "lost")
        check_whole(store, url)
    assert in_a_child(lambda: train(tmp_path / "new")) == 0
    check_whole(store, url)
    final, whole = (torch.load(tmp_path / each / "final" / "state.pt") for each in ("new", "whole"))
    assert all(torch.equal(final["model"][name], whole["model"][name]) for name in whole["model"])
    assert len([each for each in store.glob("step-*") if each.is_dir()]) <= 2
    log, told = ((tmp_path / each / "metrics.jsonl").read_text() for each in ("new", "whole"))
    assert len(log.splitlines()) == len(told.splitlines())
