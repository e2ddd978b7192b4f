"""The processes of a loader do not outlive the one that they load for."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from trainer.processes.signals import WorkerShield, held_signals


class Lines(torch.utils.data.Dataset):
    """Items that note their process, the first one of which may take for ever."""

    def __init__(self, place, seconds):
        self.place, self.seconds = place, seconds

    def __len__(self):
        return 64

    def __getitem__(self, index):
        (self.place / f"worker-{os.getpid()}").touch()
        time.sleep(self.seconds)
        return torch.ones(4)


class SlowStart:
    def __init__(self, place):
        self.place = place

    def __call__(self, worker_id):
        (self.place / f"worker-{os.getpid()}").touch()
        time.sleep(1)


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def wait_for(condition, seconds=15):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def kill_the_trainer(tiny, tmp_path, work, workers=2):
    """Kills the process of `work` by kill -9 as soon as its workers have a file; says whether they
    are gone soon after.
    """
    child = tiny.child(work)
    found = []

    def are_there():
        found[:] = [int(path.name[7:]) for path in tmp_path.glob("worker-*")]
        return len(found) >= workers

    assert wait_for(are_there, 60)
    child.send(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    try:
        return wait_for(lambda: not any(map(is_alive, found)))
    finally:
        for pid in filter(is_alive, found):
            os.kill(pid, signal.SIGKILL)


STARTS = ["fork", pytest.param("spawn", marks=pytest.mark.slow)]
STARTS.append(pytest.param("forkserver", marks=pytest.mark.slow))  # each imports torch


@pytest.mark.parametrize("method", STARTS)
def test_a_worker_whose_trainer_is_killed_while_it_starts_ends(tiny, tmp_path, method):
    def work():
        loader = DataLoader(
            Lines(tmp_path, 0.1),
            batch_size=4,
            num_workers=2,
            worker_init_fn=SlowStart(tmp_path),
            multiprocessing_context=method,
        )
        tiny.trainer(None, snapshot_interval=None, loader=loader, epochs=100).train()

    assert kill_the_trainer(tiny, tmp_path, work)


def test_a_worker_whose_trainer_is_killed_just_after_the_fork_ends(tiny, tmp_path):
    def pause():
        (tmp_path / f"worker-{os.getpid()}").touch()
        time.sleep(1)

    def work():
        os.register_at_fork(after_in_child=pause)
        loader = DataLoader(Lines(tmp_path, 0.1), batch_size=4, num_workers=2)
        tiny.trainer(None, snapshot_interval=None, loader=loader, epochs=100).train()

    assert kill_the_trainer(tiny, tmp_path, work)


def test_a_worker_whose_trainer_is_killed_while_it_loads_an_item_ends(tiny, tmp_path):
    def work():
        loader = DataLoader(Lines(tmp_path, 600), batch_size=4, num_workers=2)
        tiny.trainer(None, snapshot_interval=None, loader=loader).train()

    assert kill_the_trainer(tiny, tmp_path, work)


@pytest.mark.slow  # imports torch in a process of its own
def test_a_worker_of_a_fork_server_ends_when_the_trainer_says_so(tiny, tmp_path):
    def work():
        context = multiprocessing.get_context("forkserver")
        with held_signals(forks=False):
            batches = iter(
                DataLoader(
                    Lines(tmp_path, 600),
                    num_workers=1,
                    worker_init_fn=WorkerShield(None),
                    multiprocessing_context=context,
                )
            )
        assert wait_for(lambda: list(tmp_path.glob("worker-*")), 60)
        (worker,) = multiprocessing.active_children()
        worker.terminate()
        worker.join(5)
        os._exit(0 if worker.exitcode == 0 else 3 + 0 * len([batches]))

    assert tiny.child(work).wait() == 0
